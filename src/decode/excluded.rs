//! The items that are excluded from a user's search.

use std::collections::{HashMap, HashSet};

use super::{Path, SearchResult};
use crate::TokenTrie;

/// The items that are excluded from one user's search.
#[derive(Debug, Clone, Default)]
pub(super) struct Excluded {
    items: HashSet<u64>,
    /// The nodes below which every item is excluded.
    nodes: HashSet<u32>,
}

impl Excluded {
    /// Makes the value of one user's list of items. Ids that the trie does not have are ignored.
    pub fn new(trie: &TokenTrie, items: &[u64]) -> Self {
        let mut excluded = Self::default();
        // The number of excluded children of each node, or of excluded items of each leaf.
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for &item in items {
            let mut leaves = trie.leaves_of(item).peekable();
            if leaves.peek().is_none() || !excluded.items.insert(item) {
                continue;
            }
            for leaf in leaves {
                excluded.exclude(trie, leaf, trie.items(leaf).len(), &mut counts);
            }
        }
        excluded
    }

    /// Excludes an item of a leaf with `items` items, and the nodes below which all items are then excluded.
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

    /// Returns whether no item is excluded.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns whether every item that begins with the path is excluded.
    pub fn holds(&self, path: &Path) -> bool {
        self.holds_node(path.node)
    }

    /// Returns whether every item below a node is excluded.
    pub fn holds_node(&self, node: u32) -> bool {
        self.nodes.contains(&node)
    }

    /// Returns the result for a complete path, with the items that are not excluded.
    pub fn found(&self, trie: &TokenTrie, path: &Path, score: f64) -> SearchResult {
        let items = trie.items(path.node).iter().copied();
        SearchResult {
            items: items.filter(|item| !self.items.contains(item)).collect(),
            log_probability: path.log_probability,
            score,
        }
    }
}
