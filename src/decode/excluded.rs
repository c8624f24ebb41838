//! Items that a user's search leaves out: already seen, or not to be had.

use std::collections::{HashMap, HashSet};

use super::{Path, SearchResult};
use crate::TokenTrie;

/// What one user's search leaves out. Probabilities stay what they are.
#[derive(Debug, Clone, Default)]
pub(super) struct Excluded {
    items: HashSet<u64>,
    /// The nodes below which every item is left out.
    nodes: HashSet<u32>,
}

impl Excluded {
    /// For one list of items a user. Items that the trie does not have are passed over.
    pub fn of_users<I: AsRef<[u64]>>(trie: &TokenTrie, users: &[I]) -> Vec<Self> {
        let wanted: HashSet<u64> = users
            .iter()
            .flat_map(|items| items.as_ref())
            .copied()
            .collect();
        let mut leaves: HashMap<u64, Vec<(u32, usize)>> = HashMap::new();
        for (leaf, items) in trie.leaves() {
            for &item in items.iter().filter(|item| wanted.contains(item)) {
                leaves.entry(item).or_default().push((leaf, items.len()));
            }
        }
        (users.iter())
            .map(|items| Self::new(trie, items.as_ref(), &leaves))
            .collect()
    }

    /// `leaves` gives the leaf of each of an item's paths, and how many items it has. A leaf that lists
    /// an item twice is there twice.
    fn new(trie: &TokenTrie, items: &[u64], leaves: &HashMap<u64, Vec<(u32, usize)>>) -> Self {
        let mut excluded = Self::default();
        // Of each node, how many of its children (or items, at a leaf) are left out.
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for item in items {
            let Some(leaves) = leaves.get(item) else {
                continue;
            };
            if !excluded.items.insert(*item) {
                continue;
            }
            for &(leaf, items) in leaves {
                excluded.exclude(trie, leaf, items, &mut counts);
            }
        }
        excluded
    }

    /// Counts an item of a leaf, which has `items`, as left out, and the nodes that this empties.
    fn exclude(
        &mut self,
        trie: &TokenTrie,
        leaf: u32,
        items: usize,
        counts: &mut HashMap<u32, usize>,
    ) {
        let (mut node, mut all) = (leaf, items);
        loop {
            let count = counts.entry(node).or_default();
            *count += 1;
            if *count < all {
                return;
            }
            self.nodes.insert(node);
            let Some(parent) = trie.parent(node) else {
                return;
            };
            (node, all) = (parent, trie.children(parent).len());
        }
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether nothing that the path can become is wanted.
    pub fn holds(&self, path: &Path) -> bool {
        self.holds_node(path.node)
    }

    /// Whether nothing below a node is wanted.
    pub fn holds_node(&self, node: u32) -> bool {
        self.nodes.contains(&node)
    }

    /// A whole path's result, with the items that are wanted.
    pub fn found(&self, trie: &TokenTrie, path: &Path, score: f64) -> SearchResult {
        let items = trie.items(path.node).iter().copied();
        SearchResult {
            items: items.filter(|item| !self.items.contains(item)).collect(),
            log_probability: path.log_probability,
            score,
        }
    }
}
