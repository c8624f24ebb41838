//! The construction of a trie: it sorts the paths, finds the longest common prefix of neighbours, and writes the nodes
//! and the leaves level by level. Every stage runs in parallel.

use std::ops::{AddAssign, Range};
use std::slice::IterMut;
use std::sync::Arc;

use rayon::prelude::*;

use super::leaves::Leaves;
use super::packing::chunks;
use super::sort::{Paths, SortedPath};
use super::{TokenTrie, too_large};
use crate::sets::TokenSets;
use crate::{Error, Result};

/// Builds the trie. A path adds an edge at each depth beyond what it shares with the path before, so that counts by depth
/// and chunk say where every chunk writes.
pub(super) fn build(ids: &[u64], offsets: &[usize], tokens: &[u32]) -> Result<TokenTrie> {
    let paths = Paths::new(ids, offsets, tokens)?;
    let sorted = paths.sort();
    let chunks = chunks(sorted.len());
    let counts: Vec<Result<_>> = (chunks.par_iter())
        .map(|chunk| count(&paths, &sorted, chunk.clone()))
        .collect();
    // In order, so that of several prefixes always the same is named.
    let counts = counts.into_iter().collect::<Result<Vec<_>>>()?;
    let mut total = Counts::default();
    counts.iter().flatten().for_each(|&counts| total += counts);
    if total.edges >= u32::MAX as usize {
        return Err(too_large("trie edges", total.edges));
    }
    // The first offset is the root's, 0; the others follow by the edges that lead to their nodes.
    let mut tokens = vec![0; total.edges];
    let mut offsets = vec![0; total.edges + 2];
    offsets[total.edges + 1] = total.edges as u32;
    let mut leaf_nodes = vec![0; total.leaves];
    let mut leaf_offsets = vec![0; total.leaves + 1];
    let mut items = vec![0; total.items];
    leaf_offsets[total.leaves] = total.items as u32;
    let whole = Share {
        next_edge: 0,
        next_item: 0,
        tokens: tokens.iter_mut(),
        offsets: offsets[1..].iter_mut(),
        leaf_nodes: leaf_nodes.iter_mut(),
        leaf_offsets: leaf_offsets.iter_mut(),
        items: items.iter_mut(),
    };
    (chunks.into_par_iter().zip(whole.split(&counts)))
        .for_each(|(chunk, levels)| fill(&paths, &sorted, chunk, levels));
    Ok(TokenTrie {
        sets: TokenSets::from_checked(offsets, tokens, paths.max_token),
        leaves: Arc::new(Leaves::new(
            leaf_nodes.into(),
            leaf_offsets.into(),
            items.into(),
        )),
    })
}

/// The numbers of what some paths, neighbours in the sorted order, add at one depth.
#[derive(Clone, Copy, Default)]
struct Counts {
    edges: usize,
    /// The leaves that these edges lead to.
    leaves: usize,
    items: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.edges += other.edges;
        self.leaves += other.leaves;
        self.items += other.items;
    }
}

/// Counts what the chunk adds at depth 0, 1, … and, nothing, at one more than its longest path has: few paths
/// may be much longer than the others, and only their chunks pay for it. Refuses a path that is a prefix of
/// another: in the sorted order such two, or paths equal to them, are neighbours.
fn count(paths: &Paths, sorted: &[SortedPath], chunk: Range<usize>) -> Result<Vec<Counts>> {
    let mut levels = Vec::new();
    let mut begins = Vec::new();
    let start = chunk.start;
    for (index, (shared, path)) in paths.with_shared(sorted, chunk).enumerate() {
        if levels.len() <= path.length as usize {
            levels.resize(path.length as usize + 1, Counts::default());
            begins.resize(path.length as usize + 1, 0isize);
        }
        begins[shared as usize] += 1;
        begins[path.length as usize] -= 1;
        let last = &mut levels[path.length as usize - 1];
        last.leaves += usize::from(shared < path.length);
        last.items += 1;
        let before = (start + index).checked_sub(1).map(|before| &sorted[before]);
        if let Some(short) = before.filter(|before| before.length == shared && shared < path.length)
        {
            return Err(Error::PathIsPrefix {
                item: short.id,
                length: short.length as usize,
                other: path.id,
                other_length: path.length as usize,
            });
        }
    }
    let mut alive = 0;
    for (level, change) in levels.iter_mut().zip(begins) {
        alive += change;
        level.edges = alive as usize;
    }
    Ok(levels)
}

/// A share of the trie's arrays that is still to be written: consecutive edges and the leaves, with
/// their items, that these lead to.
struct Share<'a> {
    next_edge: u32,
    next_item: u32,
    tokens: IterMut<'a, u32>,
    /// The first edges of the nodes that these edges lead to.
    offsets: IterMut<'a, u32>,
    leaf_nodes: IterMut<'a, u32>,
    leaf_offsets: IterMut<'a, u32>,
    items: IterMut<'a, u64>,
}

impl<'a> Share<'a> {
    /// Returns every chunk's share of every level that its paths reach. The shares of a level are side by side.
    fn split(mut self, counts: &[Vec<Counts>]) -> Vec<Vec<Self>> {
        let mut shares: Vec<Vec<_>> = (counts.iter())
            .map(|levels| Vec::with_capacity(levels.len()))
            .collect();
        let mut reaching: Vec<_> = shares.iter_mut().zip(counts).collect();
        let deepest = counts.iter().map(Vec::len).max().unwrap_or(0);
        for depth in 0..deepest {
            reaching.retain(|(_, levels)| depth < levels.len());
            for (shares, levels) in &mut reaching {
                shares.push(self.split_off(levels[depth]));
            }
        }
        shares
    }

    fn split_off(&mut self, counts: Counts) -> Self {
        let share = Self {
            next_edge: self.next_edge,
            next_item: self.next_item,
            tokens: first(&mut self.tokens, counts.edges),
            offsets: first(&mut self.offsets, counts.edges),
            leaf_nodes: first(&mut self.leaf_nodes, counts.leaves),
            leaf_offsets: first(&mut self.leaf_offsets, counts.leaves),
            items: first(&mut self.items, counts.items),
        };
        self.next_edge += counts.edges as u32;
        self.next_item += counts.items as u32;
        share
    }

    /// Writes an edge and returns its number.
    fn push_edge(&mut self, token: u32, first_child_edge: u32) -> u32 {
        push(&mut self.tokens, token);
        push(&mut self.offsets, first_child_edge);
        self.next_edge += 1;
        self.next_edge - 1
    }

    /// Records that the node which the last edge leads to is a leaf.
    fn push_leaf(&mut self) {
        push(&mut self.leaf_nodes, self.next_edge);
        push(&mut self.leaf_offsets, self.next_item);
    }

    fn push_item(&mut self, id: u64) {
        push(&mut self.items, id);
        self.next_item += 1;
    }
}

/// Splits the first `length` places off.
fn first<'a, T>(places: &mut IterMut<'a, T>, length: usize) -> IterMut<'a, T> {
    let (first, rest) = std::mem::take(places).into_slice().split_at_mut(length);
    *places = rest.iter_mut();
    first.iter_mut()
}

fn push<T>(places: &mut IterMut<T>, value: T) {
    if let Some(place) = places.next() {
        *place = value;
    }
}

/// Writes what the chunk adds to every level.
fn fill(paths: &Paths, sorted: &[SortedPath], chunk: Range<usize>, mut levels: Vec<Share>) {
    for (shared, path) in paths.with_shared(sorted, chunk) {
        let (shared, length) = (shared as usize, path.length as usize);
        // From the deepest edge up: whatever this path adds one level deeper comes after a node, so
        // the first edge it adds there is the first of the node's children.
        let mut first_child_edge = levels[length].next_edge;
        for depth in (shared..length).rev() {
            let token = paths.token(path, depth);
            first_child_edge = levels[depth].push_edge(token, first_child_edge);
        }
        let last = &mut levels[length - 1];
        if shared < length {
            last.push_leaf();
        }
        last.push_item(path.id);
    }
}
