//! The trie over a catalogue's token paths.

use std::sync::Arc;

use crate::sets::TokenSets;
use crate::{Error, Result};

mod build;
mod file;
mod packing;
mod sort;

/// An immutable trie over the token paths of a catalogue's items.
///
/// Nodes are numbered in breadth-first order, the root is 0, and the children of a node are stored
/// as its sorted tokens in compressed sparse rows. In that order the child reached by edge `e` is
/// node `e + 1`, so no child array is stored and a node costs 8 bytes. The token set of node `u`,
/// written C(u) in the paper (arXiv 2504.04178, section 4.1), is [`children`](Self::children)`(u)`.
///
/// Cloning is cheap: the arrays are shared.
///
/// ```
/// use candle_trie::TokenTrie;
/// // Token 9 ends an item. Two items may share one path.
/// let trie = TokenTrie::new([(10, vec![1, 2, 9]), (11, vec![1, 3, 9]), (12, vec![1, 3, 9])])?;
/// assert_eq!(trie.children(trie.root()), [1]);
/// let node = trie.walk(&[1]).unwrap();
/// assert_eq!(trie.children(node), [2, 3]);
/// let leaf = trie.walk(&[1, 3, 9]).unwrap();
/// assert_eq!(trie.items(leaf), [11, 12]);
/// assert_eq!(trie.walk(&[2]), None);
/// # Ok::<(), candle_trie::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTrie {
    sets: TokenSets,
    leaves: Arc<Leaves>,
}

/// Which items end at which leaf.
#[derive(Debug, PartialEq, Eq)]
struct Leaves {
    /// The nodes without children, rising.
    nodes: Vec<u32>,
    /// `offsets[i]..offsets[i + 1]` index `items` for leaf `nodes[i]`.
    offsets: Vec<u32>,
    /// Item ids, rising inside a leaf.
    items: Vec<u64>,
}

impl TokenTrie {
    /// Builds the trie of `items`, each an id and the tokens that write it, end token included.
    ///
    /// Items with equal paths share a leaf. The order of the items does not matter.
    ///
    /// # Errors
    /// [`Error::EmptyCatalogue`], [`Error::EmptyPath`], [`Error::PathIsPrefix`] (naming the items)
    /// and [`Error::TooLarge`] (2³² nodes or paths, or the token `u32::MAX`).
    pub fn new<P: AsRef<[u32]>>(items: impl IntoIterator<Item = (u64, P)>) -> Result<Self> {
        let items = items.into_iter();
        let mut ids = Vec::with_capacity(items.size_hint().0);
        let mut offsets = Vec::with_capacity(items.size_hint().0 + 1);
        let mut tokens = Vec::new();
        offsets.push(0);
        for (id, path) in items {
            ids.push(id);
            tokens.extend_from_slice(path.as_ref());
            offsets.push(tokens.len());
        }
        Self::from_paths(&ids, &offsets, &tokens)
    }

    /// Builds the trie from flat arrays: item `ids[i]` has the path `tokens[offsets[i]..offsets[i + 1]]`.
    ///
    /// # Errors
    /// Those of [`TokenTrie::new`], and [`Error::Malformed`] or [`Error::LengthMismatch`] where the
    /// arrays do not fit together.
    pub fn from_paths(ids: &[u64], offsets: &[usize], tokens: &[u32]) -> Result<Self> {
        build::build(ids, offsets, tokens)
    }

    /// The root: node 0, the empty prefix.
    pub fn root(&self) -> u32 {
        0
    }

    /// The tokens that may follow `node`, rising; empty at a leaf and for a node that does not exist.
    pub fn children(&self, node: u32) -> &[u32] {
        self.edges(node).map_or(&[], |(_, tokens)| tokens)
    }

    /// The node that `token` leads to from `node`.
    pub fn child(&self, node: u32, token: u32) -> Option<u32> {
        let (first_edge, tokens) = self.edges(node)?;
        let rank = tokens.binary_search(&token).ok()?;
        Some(first_edge + rank as u32 + 1)
    }

    /// The node reached by the smallest token of `node`: the token of rank `r` in
    /// [`children`](Self::children) leads to `first_child + r`. `None` at a leaf.
    pub fn first_child(&self, node: u32) -> Option<u32> {
        let (first_edge, tokens) = self.edges(node)?;
        (!tokens.is_empty()).then_some(first_edge + 1)
    }

    /// The node that leads to `node`. `None` for the root and for a node that does not exist.
    pub fn parent(&self, node: u32) -> Option<u32> {
        let edge = node.checked_sub(1)?;
        let (offsets, tokens) = self.raw();
        let after = offsets.partition_point(|&offset| offset <= edge) as u32;
        (edge < tokens.len() as u32).then_some(after - 1)
    }

    /// The node reached from the root by `prefix`, or `None` where no item begins so.
    pub fn walk(&self, prefix: &[u32]) -> Option<u32> {
        prefix
            .iter()
            .try_fold(self.root(), |node, &token| self.child(node, token))
    }

    /// The items that end at `node`, ids rising; empty unless it is a leaf.
    pub fn items(&self, node: u32) -> &[u64] {
        let leaves = &*self.leaves;
        leaves.nodes.binary_search(&node).map_or(&[], |leaf| {
            &leaves.items[leaves.offsets[leaf] as usize..leaves.offsets[leaf + 1] as usize]
        })
    }

    /// The leaves, rising, each with its items.
    pub fn leaves(&self) -> impl ExactSizeIterator<Item = (u32, &[u64])> {
        let leaves = &*self.leaves;
        (leaves.nodes.iter().zip(leaves.offsets.windows(2)))
            .map(|(&node, bounds)| (node, &leaves.items[bounds[0] as usize..bounds[1] as usize]))
    }

    /// How many nodes there are, the root and the leaves included.
    pub fn node_count(&self) -> usize {
        self.raw().0.len() - 1
    }

    /// How many nodes have more than one child.
    pub fn branching_count(&self) -> usize {
        let (offsets, _) = self.raw();
        offsets
            .windows(2)
            .filter(|pair| pair[1] - pair[0] > 1)
            .count()
    }

    /// How many leaves there are: the distinct paths.
    pub fn leaf_count(&self) -> usize {
        self.leaves.nodes.len()
    }

    /// How many items there are, those that share a path counted each.
    pub fn item_count(&self) -> usize {
        self.leaves.items.len()
    }

    /// The largest token on any path.
    pub fn max_token(&self) -> u32 {
        self.sets.max_token()
    }

    /// The token sets of the nodes: set `u` holds the children of node `u`.
    pub fn sets(&self) -> &TokenSets {
        &self.sets
    }

    /// The first edge of `node` and the tokens of its edges.
    fn edges(&self, node: u32) -> Option<(u32, &[u32])> {
        let (offsets, tokens) = self.raw();
        let start = *offsets.get(node as usize)?;
        let end = *offsets.get(node as usize + 1)?;
        Some((start, tokens.get(start as usize..end as usize)?))
    }

    fn raw(&self) -> (&[u32], &[u32]) {
        // A trie's sets are always listed; an empty trie is what the type would allow and no
        // constructor makes.
        self.sets.as_raw().unwrap_or((&[0], &[]))
    }
}

impl From<&TokenTrie> for TokenSets {
    fn from(trie: &TokenTrie) -> Self {
        trie.sets.clone()
    }
}

fn too_large(what: &'static str, size: usize) -> Error {
    Error::TooLarge {
        what,
        size: size as u64,
        limit: u64::from(u32::MAX) - 1,
    }
}
