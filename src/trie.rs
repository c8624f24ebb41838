//! A trie over a catalogue's token paths.

use std::sync::Arc;

use crate::sets::TokenSets;
use crate::{Error, Result};

mod build;
mod file;
mod leaves;
mod mapped;
mod packing;
mod sort;

use leaves::Leaves;

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

impl TokenTrie {
    /// Builds the trie of `items`, each an id and the tokens that spell it, end token included.
    ///
    /// The order of the items does not matter. Several items may have one path: they share its leaf. An item may have
    /// several paths, under one id: each of its leaves names it, its probability is the sum over its paths, and a search
    /// returns each path as a result of its own. An id that is given twice with one path is listed twice at its leaf.
    ///
    /// ```
    /// use candle_trie::TokenTrie;
    /// // Item 7 has two titles, and is given twice with the second.
    /// let trie = TokenTrie::new([(7, vec![1, 9]), (7, vec![2, 9]), (7, vec![2, 9])])?;
    /// assert_eq!(trie.items(trie.walk(&[1, 9]).unwrap()), [7]);
    /// assert_eq!(trie.items(trie.walk(&[2, 9]).unwrap()), [7, 7]);
    /// assert_eq!((trie.leaf_count(), trie.item_count()), (2, 3));
    /// # Ok::<(), candle_trie::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::EmptyCatalogue`], [`Error::EmptyPath`], [`Error::PathIsPrefix`] (naming the items)
    /// and [`Error::TooLarge`] (2³² nodes or paths, or the token `u32::MAX`).
    pub fn new<P: AsRef<[u32]>>(items: impl IntoIterator<Item = (u64, P)>) -> Result<Self> {
        let (mut ids, mut offsets, mut tokens) = (Vec::new(), vec![0], Vec::new());
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
    /// Those of [`new`](Self::new), and [`Error::Malformed`] or [`Error::LengthMismatch`] where the
    /// arrays do not fit together.
    pub fn from_paths(ids: &[u64], offsets: &[usize], tokens: &[u32]) -> Result<Self> {
        build::build(ids, offsets, tokens)
    }

    /// Returns the root, which is node 0 and stands for the empty prefix.
    pub fn root(&self) -> u32 {
        0
    }

    /// Returns the tokens that may follow `node`, in rising order. There is none at a leaf, and none for a node that does
    /// not exist.
    pub fn children(&self, node: u32) -> &[u32] {
        self.edges(node).map_or(&[], |(_, tokens)| tokens)
    }

    /// Returns the node that `token` leads to from `node`, or `None` where it does not continue any item.
    pub fn child(&self, node: u32, token: u32) -> Option<u32> {
        let (first_edge, tokens) = self.edges(node)?;
        let rank = tokens.binary_search(&token).ok()?;
        Some(first_edge + rank as u32 + 1)
    }

    /// Returns the node reached by the smallest token of `node`, or `None` at a leaf. The token of rank `r` in
    /// [`children`](Self::children) leads to `first_child + r`.
    pub fn first_child(&self, node: u32) -> Option<u32> {
        let (first_edge, tokens) = self.edges(node)?;
        (!tokens.is_empty()).then(|| first_edge + 1)
    }

    /// Returns the node that leads to `node`, or `None` for the root and for a node that does not exist.
    pub fn parent(&self, node: u32) -> Option<u32> {
        let edge = node.checked_sub(1)?;
        let (offsets, tokens) = self.raw();
        let after = offsets.partition_point(|&offset| offset <= edge) as u32;
        // A mapped file may be damaged: nobody must go up in a circle.
        let parent = after.checked_sub(1).filter(|&parent| parent < node);
        parent.filter(|_| edge < tokens.len() as u32)
    }

    /// Returns the node reached from the root by `prefix`, or `None` where no item begins so.
    pub fn walk(&self, prefix: &[u32]) -> Option<u32> {
        prefix
            .iter()
            .try_fold(self.root(), |node, &token| self.child(node, token))
    }

    /// Returns the ids of the items that end at `node`, in rising order. There is none unless it is a leaf.
    pub fn items(&self, node: u32) -> &[u64] {
        self.leaves.items_at(node)
    }

    /// Iterates over the leaves in rising order, each with its items.
    pub fn leaves(&self) -> impl ExactSizeIterator<Item = (u32, &[u64])> {
        self.leaves.iter()
    }

    /// Iterates over the leaves at which an item ends, in rising order: one for each of its paths. A path that was given
    /// twice is there twice. An id that the trie does not have is at no leaf.
    ///
    /// The first call sorts the ids of all items, unless the trie comes from a file, where [`save`](Self::save) has written
    /// their order.
    ///
    /// ```
    /// use candle_trie::TokenTrie;
    /// let trie = TokenTrie::new([(7, vec![1, 9]), (8, vec![2, 9]), (7, vec![3, 9])])?;
    /// let paths = [[1, 9], [3, 9]].map(|path| trie.walk(&path).unwrap());
    /// assert!(trie.leaves_of(7).eq(paths));
    /// assert_eq!(trie.leaves_of(9).count(), 0);
    /// # Ok::<(), candle_trie::Error>(())
    /// ```
    pub fn leaves_of(&self, item: u64) -> impl Iterator<Item = u32> {
        self.leaves.of_item(item)
    }

    /// Returns the number of nodes, the root and the leaves included.
    pub fn node_count(&self) -> usize {
        self.raw().0.len() - 1
    }

    /// Returns the number of branching nodes, which have more than one child.
    pub fn branching_count(&self) -> usize {
        let (offsets, _) = self.raw();
        offsets
            .windows(2)
            .filter(|pair| pair[1].saturating_sub(pair[0]) > 1)
            .count()
    }

    /// Returns the number of leaves, which is that of distinct paths.
    pub fn leaf_count(&self) -> usize {
        self.leaves.nodes().len()
    }

    /// Returns the number of items, as they were given: those that share a path count each.
    pub fn item_count(&self) -> usize {
        self.leaves.items().len()
    }

    /// Returns the largest token on any path.
    pub fn max_token(&self) -> u32 {
        self.sets.max_token()
    }

    /// Returns the token sets of the nodes: set `u` holds the children of node `u`.
    pub fn sets(&self) -> &TokenSets {
        &self.sets
    }

    /// Returns the first edge of `node` and the tokens of its edges.
    pub(crate) fn edges(&self, node: u32) -> Option<(u32, &[u32])> {
        self.sets.listed(node)
    }

    /// Returns the number of edges that leave `node`, without a look at their tokens.
    pub(crate) fn fan_out(&self, node: u32) -> u32 {
        self.sets.listed_size(node)
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
