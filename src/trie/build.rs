//! Building: sort the paths, find what each shares with the one before, then number the nodes level by
//! level. Every stage runs in parallel.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::sort::{Paths, SortedPath};
use super::{Leaves, TokenTrie, too_large};
use crate::sets::TokenSets;
use crate::{Error, Result};

/// Fewer paths than this are not worth a second thread.
const PATHS_PER_CHUNK: usize = 4096;

pub(super) fn build(ids: &[u64], offsets: &[usize], tokens: &[u32]) -> Result<TokenTrie> {
    let paths = Paths::new(ids, offsets, tokens)?;
    let sorted = paths.sort();
    let (sets, leaves) = number_nodes(&paths, &sorted)?;
    Ok(TokenTrie {
        sets,
        leaves: Arc::new(place_items(&sorted, leaves)),
    })
}

/// The paths in stretches, a few for each thread.
pub(super) fn chunks(paths: usize) -> Vec<Range<usize>> {
    let length = paths
        .div_ceil(4 * rayon::current_num_threads())
        .max(PATHS_PER_CHUNK);
    (0..paths)
        .step_by(length)
        .map(|start| start..(start + length).min(paths))
        .collect()
}

/// A leaf, the index of its first path in the sorted order, and how many paths end there.
#[derive(Clone, Copy, Zeroable)]
struct Leaf {
    node: u32,
    first: u32,
    paths: u32,
}

/// What some paths, neighbours in the sorted order, add to the trie.
struct Counts {
    /// Edges at depth 0, 1, …; one depth more than there are, which has none.
    edges: Vec<usize>,
    leaves: usize,
}

/// One chunk's share of one level: the edges that its paths add at that depth.
struct LevelShare<'a> {
    first_edge: u32,
    used: usize,
    tokens: &'a mut [u32],
    /// Where the children of the nodes that these edges lead to begin.
    offsets: &'a mut [u32],
}

impl LevelShare<'_> {
    fn next_edge(&self) -> u32 {
        self.first_edge + self.used as u32
    }
}

/// Numbers the nodes: a path adds a node at each depth beyond what it shares with the path before,
/// so counts by depth and chunk say where every chunk writes.
fn number_nodes(paths: &Paths, sorted: &[SortedPath]) -> Result<(TokenSets, Vec<Leaf>)> {
    let chunks = chunks(sorted.len());
    let depth = paths.longest;
    let counts: Vec<Result<Counts>> = (chunks.par_iter())
        .map(|chunk| count(paths, sorted, chunk.clone(), depth))
        .collect();
    let counts = counts.into_iter().collect::<Result<Vec<_>>>()?;
    let (counts, leaf_counts): (Vec<_>, Vec<_>) = (counts.into_iter())
        .map(|counts| (counts.edges, counts.leaves))
        .unzip();
    let edges: usize = counts.iter().flatten().sum();
    if edges >= u32::MAX as usize {
        return Err(too_large("trie edges", edges));
    }
    let mut tokens = vec![0; edges];
    let mut offsets = vec![0; edges + 2];
    offsets[edges + 1] = edges as u32;
    let levels = levels(&counts, depth, &mut tokens, &mut offsets[1..=edges]);
    let mut leaves: Vec<Leaf> = bytemuck::zeroed_vec(leaf_counts.iter().sum());
    let leaf_shares = split(&mut leaves, &leaf_counts);
    let at_earlier_leaves: Vec<u32> = (chunks
        .into_par_iter()
        .zip(levels.into_par_iter().zip(leaf_shares)))
    .map(|(chunk, (levels, leaves))| fill_chunk(paths, sorted, chunk, levels, leaves))
    .collect();
    let mut end = 0;
    for (paths, count) in at_earlier_leaves.into_iter().zip(leaf_counts) {
        if let Some(last) = leaves[..end].last_mut() {
            last.paths += paths;
        }
        end += count;
    }
    leaves.par_sort_unstable_by_key(|leaf| leaf.node);
    let sets = TokenSets::from_checked(offsets, tokens, paths.max_token);
    Ok((sets, leaves))
}

/// What the chunk adds. Refuses a path that begins another: in the sorted order such two, or paths
/// equal to them, are neighbours.
fn count(
    paths: &Paths,
    sorted: &[SortedPath],
    chunk: Range<usize>,
    depth: usize,
) -> Result<Counts> {
    let mut begins = vec![0isize; depth + 1];
    let mut leaves = 0;
    let start = chunk.start;
    for (index, (shared, path)) in paths.with_shared(sorted, chunk).enumerate() {
        begins[shared as usize] += 1;
        begins[path.length as usize] -= 1;
        leaves += usize::from(shared < path.length);
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
    let edges = begins[..depth].iter().map(|change| {
        alive += change;
        alive as usize
    });
    Ok(Counts {
        edges: edges.chain([0]).collect(),
        leaves,
    })
}

/// Every chunk's share of every level, and of one level more, which is empty.
fn levels<'a>(
    counts: &[Vec<usize>],
    depth: usize,
    tokens: &'a mut [u32],
    offsets: &'a mut [u32],
) -> Vec<Vec<LevelShare<'a>>> {
    let mut first_edge = 0;
    let mut first_edges = vec![Vec::with_capacity(depth + 1); counts.len()];
    for level in 0..=depth {
        for (first_edges, counts) in first_edges.iter_mut().zip(counts) {
            first_edges.push(first_edge);
            first_edge += counts[level] as u32;
        }
    }
    let tokens = shares(counts, depth + 1, tokens);
    let offsets = shares(counts, depth + 1, offsets);
    (first_edges.into_iter().zip(tokens.into_iter().zip(offsets)))
        .map(|(first_edges, (tokens, offsets))| {
            (first_edges.into_iter().zip(tokens.into_iter().zip(offsets)))
                .map(|(first_edge, (tokens, offsets))| LevelShare {
                    first_edge,
                    used: 0,
                    tokens,
                    offsets,
                })
                .collect()
        })
        .collect()
}

/// Writes the chunk's edges and leaves. Gives how many of its paths end at the last leaf before it.
fn fill_chunk(
    paths: &Paths,
    sorted: &[SortedPath],
    chunk: Range<usize>,
    mut levels: Vec<LevelShare>,
    leaves: &mut [Leaf],
) -> u32 {
    let mut at_earlier_leaf = 0;
    let mut leaves_used = 0;
    let start = chunk.start;
    for (index, (shared, path)) in paths.with_shared(sorted, chunk).enumerate() {
        for depth in shared as usize..path.length as usize {
            // Whatever this path adds one level deeper comes after this node, so the deeper
            // level's next edge is the first of this node's children.
            let first_child_edge = levels[depth + 1].next_edge();
            let level = &mut levels[depth];
            level.tokens[level.used] = paths.token(path, depth);
            level.offsets[level.used] = first_child_edge;
            level.used += 1;
        }
        if shared < path.length {
            leaves[leaves_used] = Leaf {
                node: levels[path.length as usize - 1].next_edge(),
                first: (start + index) as u32,
                paths: 1,
            };
            leaves_used += 1;
        } else if let Some(leaf) = leaves[..leaves_used].last_mut() {
            leaf.paths += 1;
        } else {
            at_earlier_leaf += 1;
        }
    }
    at_earlier_leaf
}

/// Lists the items leaf by leaf: those of a leaf are neighbours in the sorted order.
fn place_items(sorted: &[SortedPath], leaves: Vec<Leaf>) -> Leaves {
    let mut offsets = Vec::with_capacity(leaves.len() + 1);
    let mut end = 0;
    offsets.push(end);
    for leaf in &leaves {
        end += leaf.paths;
        offsets.push(end);
    }
    let chunks = chunks(leaves.len());
    let sizes: Vec<usize> = (chunks.iter())
        .map(|chunk| (offsets[chunk.end] - offsets[chunk.start]) as usize)
        .collect();
    let mut items = vec![0; sorted.len()];
    (chunks.into_par_iter().zip(split(&mut items, &sizes))).for_each(|(chunk, items)| {
        let paths_of = |leaf: &Leaf| &sorted[leaf.first as usize..][..leaf.paths as usize];
        for (item, path) in items
            .iter_mut()
            .zip(leaves[chunk].iter().flat_map(paths_of))
        {
            *item = path.id;
        }
    });
    Leaves {
        nodes: leaves.into_par_iter().map(|leaf| leaf.node).collect(),
        offsets,
        items,
    }
}

/// Cuts `values` into part after part, and each part into one share for each chunk, as long as
/// `counts[chunk][part]` says; gives the shares chunk by chunk.
pub(super) fn shares<'a, T>(
    counts: &[Vec<usize>],
    parts: usize,
    mut values: &'a mut [T],
) -> Vec<Vec<&'a mut [T]>> {
    let mut shares: Vec<Vec<_>> = counts.iter().map(|_| Vec::with_capacity(parts)).collect();
    for part in 0..parts {
        for (shares, counts) in shares.iter_mut().zip(counts) {
            let (share, rest) = values.split_at_mut(counts[part]);
            shares.push(share);
            values = rest;
        }
    }
    shares
}

/// Cuts `values` into consecutive pieces of these lengths.
pub(super) fn split<'a, T>(mut values: &'a mut [T], lengths: &[usize]) -> Vec<&'a mut [T]> {
    (lengths.iter())
        .map(|&length| {
            let (piece, rest) = std::mem::take(&mut values).split_at_mut(length);
            values = rest;
            piece
        })
        .collect()
}
