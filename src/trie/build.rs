//! Building: partition the paths by their first tokens, sort the parts, find what each path shares
//! with the one before, then number the nodes level by level. Every stage runs in parallel.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::packing::Packing;
use super::{Leaves, TokenTrie, too_large};
use crate::sets::TokenSets;
use crate::{Error, Result};

/// Fewer paths than this are not worth a second thread.
pub(super) const PATHS_PER_CHUNK: usize = 4096;
/// How many parts are sorted apart. Ten million paths make parts of 300 KiB.
const PARTS: usize = 1024;
/// From here on a part is worth more than one thread.
const PATHS_PER_PART: usize = 1 << 16;

pub(super) fn build(ids: &[u64], offsets: &[usize], tokens: &[u32]) -> Result<TokenTrie> {
    let paths = Paths::new(ids, offsets, tokens)?;
    let sorted = paths.sort();
    let (sets, leaves) = number_nodes(&paths, &sorted)?;
    Ok(TokenTrie {
        sets,
        leaves: Arc::new(place_items(&sorted, leaves)),
    })
}

/// The input, checked, with the packing of its tokens into sort keys.
struct Paths<'a> {
    ids: &'a [u64],
    offsets: &'a [usize],
    tokens: &'a [u32],
    max_token: u32,
    packing: Packing,
}

/// A path in the sorted order, with what the later stages would have to look up far away.
#[derive(Clone, Copy, Zeroable)]
struct SortedPath {
    /// The first tokens of the path.
    key: u128,
    /// The id of its item.
    id: u64,
    /// The index of the path in the input.
    path: u32,
    /// Its length in tokens.
    length: u32,
}

impl<'a> Paths<'a> {
    fn new(ids: &'a [u64], offsets: &'a [usize], tokens: &'a [u32]) -> Result<Self> {
        if ids.is_empty() {
            return Err(Error::EmptyCatalogue);
        }
        if offsets.len() != ids.len() + 1 {
            return Err(Error::LengthMismatch {
                what: "path offsets (one more than items)",
                expected: ids.len() + 1,
                actual: offsets.len(),
            });
        }
        if offsets[0] != 0 || offsets[ids.len()] != tokens.len() {
            return Err(Error::Malformed {
                what: "path offsets",
                detail: format!(
                    "they must run from 0 to {}, but run from {} to {}",
                    tokens.len(),
                    offsets[0],
                    offsets[ids.len()]
                ),
            });
        }
        if !offsets.is_sorted_by(|start, end| start < end) {
            let falls = offsets.windows(2).position(|pair| pair[0] >= pair[1]);
            let index = falls.unwrap_or(0);
            if offsets[index] == offsets[index + 1] {
                return Err(Error::EmptyPath { item: ids[index] });
            }
            return Err(Error::Malformed {
                what: "path offsets",
                detail: format!(
                    "{} is followed by {} at item {}",
                    offsets[index],
                    offsets[index + 1],
                    ids[index]
                ),
            });
        }
        if ids.len() >= u32::MAX as usize {
            return Err(too_large("paths", ids.len()));
        }
        let max_token = tokens.par_iter().copied().max().unwrap_or(0);
        if max_token == u32::MAX {
            return Err(too_large("token", max_token as usize));
        }
        let packing = Packing::new(ids.len(), |path| &tokens[offsets[path]..offsets[path + 1]]);
        Ok(Self {
            ids,
            offsets,
            tokens,
            max_token,
            packing,
        })
    }

    fn path(&self, path: u32) -> &'a [u32] {
        &self.tokens[self.offsets[path as usize]..self.offsets[path as usize + 1]]
    }

    /// The tokens of `path` from `depth` on, beyond what a key holds.
    fn beyond_key(&self, path: &SortedPath) -> &'a [u32] {
        self.path(path.path)
            .get(self.packing.tokens()..)
            .unwrap_or(&[])
    }

    fn token(&self, path: &SortedPath, depth: usize) -> u32 {
        if depth < self.packing.tokens() {
            self.packing.token(path.key, depth)
        } else {
            self.path(path.path)[depth]
        }
    }

    /// The paths in lexicographic order, equal ones by item id.
    fn sort(&self) -> Vec<SortedPath> {
        let (mut sorted, parts) = self.partition();
        (split(&mut sorted, &parts).into_par_iter()).for_each(|part| {
            // The parts of an even partition are small, and the sequential sort is the faster one.
            if part.len() < PATHS_PER_PART {
                part.sort_unstable_by(|a, b| self.compare(a, b));
            } else {
                part.par_sort_unstable_by(|a, b| self.compare(a, b));
            }
        });
        sorted
    }

    /// The paths by the highest bits of their keys, and how many have the same: what is left to sort
    /// fits a core's cache.
    fn partition(&self) -> (Vec<SortedPath>, Vec<usize>) {
        let count = self.ids.len();
        let part = |path: &[u32]| self.packing.highest(path, PARTS.ilog2());
        let chunks = chunks(count);
        let counts: Vec<Vec<usize>> = (chunks.par_iter())
            .map(|chunk| {
                let mut counts = vec![0; PARTS];
                for path in chunk.clone() {
                    counts[part(self.path(path as u32))] += 1;
                }
                counts
            })
            .collect();
        let mut sorted = bytemuck::zeroed_vec(count);
        (shares(&counts, PARTS, &mut sorted)
            .into_par_iter()
            .zip(chunks))
        .for_each(|(parts, chunk)| {
            let mut parts: Vec<_> = parts.into_iter().map(<[_]>::iter_mut).collect();
            for path in chunk {
                let tokens = self.path(path as u32);
                if let Some(place) = parts[part(tokens)].next() {
                    *place = SortedPath {
                        key: self.packing.pack(tokens),
                        path: path as u32,
                        length: tokens.len() as u32,
                        id: self.ids[path],
                    };
                }
            }
        });
        let sizes = (0..PARTS).map(|part| counts.iter().map(|counts| counts[part]).sum());
        (sorted, sizes.collect())
    }

    #[inline(always)]
    fn compare(&self, a: &SortedPath, b: &SortedPath) -> Ordering {
        if a.key == b.key {
            self.compare_beyond_key(a, b)
        } else {
            a.key.cmp(&b.key)
        }
    }

    /// Apart, so that the sort's inner loop stays small.
    #[cold]
    #[inline(never)]
    fn compare_beyond_key(&self, a: &SortedPath, b: &SortedPath) -> Ordering {
        (self.beyond_key(a).cmp(self.beyond_key(b))).then_with(|| a.id.cmp(&b.id))
    }

    /// Some paths of the sorted order, each with how many leading tokens it shares with the one
    /// before it.
    fn with_shared<'s>(
        &self,
        sorted: &'s [SortedPath],
        chunk: Range<usize>,
    ) -> impl Iterator<Item = (u32, &'s SortedPath)> {
        chunk.map(|index| {
            let path = &sorted[index];
            let before = index.checked_sub(1).map(|before| &sorted[before]);
            (before.map_or(0, |before| self.shared(before, path)), path)
        })
    }

    /// The length of the longest common prefix of two paths.
    fn shared(&self, a: &SortedPath, b: &SortedPath) -> u32 {
        let shortest = a.length.min(b.length) as usize;
        let mut shared = self.packing.shared(a.key, b.key);
        if shared == self.packing.tokens() {
            shared += (self.beyond_key(a).iter().zip(self.beyond_key(b)))
                .take_while(|(a, b)| a == b)
                .count();
        }
        shared.min(shortest) as u32
    }
}

/// The paths in stretches, a few for each thread.
fn chunks(paths: usize) -> Vec<Range<usize>> {
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
    let depth = sorted.par_iter().map(|path| path.length).max().unwrap_or(0) as usize;
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
fn shares<'a, T>(
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
fn split<'a, T>(mut values: &'a mut [T], lengths: &[usize]) -> Vec<&'a mut [T]> {
    (lengths.iter())
        .map(|&length| {
            let (piece, rest) = std::mem::take(&mut values).split_at_mut(length);
            values = rest;
            piece
        })
        .collect()
}
