//! Building: sort the paths, find what each shares with the one before, then number the nodes level
//! by level. Every stage runs in parallel over the sorted paths.

use std::cmp::Ordering;
use std::sync::Arc;

use rayon::prelude::*;

use super::{Leaves, TokenTrie, too_large};
use crate::sets::TokenSets;
use crate::{Error, Result};

/// Fewer paths than this are not worth a second thread.
const PATHS_PER_CHUNK: usize = 4096;

pub(super) fn build(ids: &[u64], offsets: &[usize], tokens: &[u32]) -> Result<TokenTrie> {
    let paths = Paths::new(ids, offsets, tokens)?;
    let sorted = paths.sort();
    paths.refuse_prefixes(&sorted)?;
    let (sets, leaves) = number_nodes(&paths, &sorted)?;
    Ok(TokenTrie {
        sets,
        leaves: Arc::new(place_items(&paths, &sorted, leaves)),
    })
}

/// The input, checked, with the packing of its tokens into sort keys.
struct Paths<'a> {
    ids: &'a [u64],
    offsets: &'a [usize],
    tokens: &'a [u32],
    packing: Packing,
}

/// A path in the sorted order.
#[derive(Clone, Copy)]
struct SortedPath {
    /// The first tokens of the path, packed so that keys compare as the paths do.
    key: u128,
    /// The index of the path in the input.
    path: u32,
    /// Its length in tokens.
    length: u32,
    /// How many leading tokens it shares with the path sorted before it.
    shared: u32,
}

/// How tokens are packed into a key: `token + 1` in `bits` bits each, the first token highest, so
/// that the zero of a path that has ended sorts first.
#[derive(Clone, Copy)]
struct Packing {
    bits: u32,
    tokens: usize,
}

impl Packing {
    fn new(max_token: u32) -> Self {
        let bits = u32::BITS - (max_token + 1).leading_zeros();
        Self {
            bits,
            tokens: (u128::BITS / bits) as usize,
        }
    }

    fn shift(self, depth: usize) -> u32 {
        u128::BITS - self.bits * (depth as u32 + 1)
    }

    fn pack(self, path: &[u32]) -> u128 {
        (path.iter().take(self.tokens).enumerate()).fold(0, |key, (depth, &token)| {
            key | (u128::from(token + 1) << self.shift(depth))
        })
    }

    /// The token at `depth`, which must be below `self.tokens` and the path's length.
    fn token(self, key: u128, depth: usize) -> u32 {
        ((key >> self.shift(depth)) as u32 & (u32::MAX >> (u32::BITS - self.bits))) - 1
    }
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
        if let Some(index) = offsets.windows(2).position(|pair| pair[0] >= pair[1]) {
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
        Ok(Self {
            ids,
            offsets,
            tokens,
            packing: Packing::new(max_token),
        })
    }

    fn path(&self, path: u32) -> &'a [u32] {
        &self.tokens[self.offsets[path as usize]..self.offsets[path as usize + 1]]
    }

    fn id(&self, sorted: &SortedPath) -> u64 {
        self.ids[sorted.path as usize]
    }

    /// The tokens of `path` from `depth` on, beyond what a key holds.
    fn beyond_key(&self, path: &SortedPath) -> &'a [u32] {
        self.path(path.path)
            .get(self.packing.tokens..)
            .unwrap_or(&[])
    }

    fn token(&self, path: &SortedPath, depth: usize) -> u32 {
        if depth < self.packing.tokens {
            self.packing.token(path.key, depth)
        } else {
            self.path(path.path)[depth]
        }
    }

    /// The paths in lexicographic order, equal ones by item id, each with what it shares with the
    /// one before.
    fn sort(&self) -> Vec<SortedPath> {
        let mut sorted: Vec<_> = (0..self.ids.len() as u32)
            .into_par_iter()
            .with_min_len(PATHS_PER_CHUNK)
            .map(|path| {
                let tokens = self.path(path);
                SortedPath {
                    key: self.packing.pack(tokens),
                    path,
                    length: tokens.len() as u32,
                    shared: 0,
                }
            })
            .collect();
        sorted.par_sort_unstable_by(|a, b| self.compare(a, b));
        let shared: Vec<u32> = sorted
            .par_windows(2)
            .with_min_len(PATHS_PER_CHUNK)
            .map(|pair| self.shared(&pair[0], &pair[1]))
            .collect();
        for (path, shared) in sorted[1..].iter_mut().zip(shared) {
            path.shared = shared;
        }
        sorted
    }

    fn compare(&self, a: &SortedPath, b: &SortedPath) -> Ordering {
        a.key
            .cmp(&b.key)
            .then_with(|| self.beyond_key(a).cmp(self.beyond_key(b)))
            .then_with(|| self.id(a).cmp(&self.id(b)))
    }

    /// The length of the longest common prefix of two paths.
    fn shared(&self, a: &SortedPath, b: &SortedPath) -> u32 {
        let difference = a.key ^ b.key;
        let shortest = a.length.min(b.length);
        if difference != 0 {
            return (difference.leading_zeros() / self.packing.bits).min(shortest);
        }
        let beyond = (self.beyond_key(a).iter().zip(self.beyond_key(b)))
            .take_while(|(a, b)| a == b)
            .count();
        (self.packing.tokens + beyond).min(shortest as usize) as u32
    }

    /// In sorted order a prefix is followed by a path that it begins, so neighbours tell.
    fn refuse_prefixes(&self, sorted: &[SortedPath]) -> Result<()> {
        let prefix = (sorted.par_windows(2))
            .with_min_len(PATHS_PER_CHUNK)
            .position_first(|pair| {
                pair[1].shared == pair[0].length && pair[0].length < pair[1].length
            });
        prefix.map_or(Ok(()), |index| {
            let (short, long) = (&sorted[index], &sorted[index + 1]);
            Err(Error::PathIsPrefix {
                item: self.id(short),
                length: short.length as usize,
                other: self.id(long),
                other_length: long.length as usize,
            })
        })
    }
}

/// A leaf and the index of its first path in the sorted order.
type LeafStart = (u32, u32);

/// One chunk's share of one level: the edges that its paths add at that depth.
#[derive(Default)]
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
fn number_nodes(paths: &Paths, sorted: &[SortedPath]) -> Result<(TokenSets, Vec<LeafStart>)> {
    let chunk_length = sorted
        .len()
        .div_ceil(4 * rayon::current_num_threads())
        .max(PATHS_PER_CHUNK);
    let depth = sorted.par_iter().map(|path| path.length).max().unwrap_or(0) as usize;
    let counts: Vec<Vec<usize>> = sorted
        .par_chunks(chunk_length)
        .map(|chunk| count_by_depth(chunk, depth))
        .collect();
    let edges: usize = counts.iter().flatten().sum();
    if edges >= u32::MAX as usize {
        return Err(too_large("trie edges", edges));
    }
    let mut tokens = vec![0; edges];
    let mut offsets = vec![0; edges + 2];
    offsets[edges + 1] = edges as u32;
    let leaves: Vec<Vec<LeafStart>> = divide(&counts, depth, &mut tokens, &mut offsets[1..=edges])
        .into_par_iter()
        .zip(sorted.par_chunks(chunk_length))
        .enumerate()
        .map(|(index, (levels, chunk))| {
            fill_chunk(paths, chunk, (index * chunk_length) as u32, levels)
        })
        .collect();
    let mut leaves = leaves.concat();
    leaves.par_sort_unstable();
    Ok((TokenSets::from_checked(offsets, tokens), leaves))
}

/// How many nodes the chunk adds at depths 1, 2, …
fn count_by_depth(chunk: &[SortedPath], depth: usize) -> Vec<usize> {
    let mut begins = vec![0isize; depth + 1];
    for path in chunk {
        begins[path.shared as usize] += 1;
        begins[path.length as usize] -= 1;
    }
    let mut alive = 0;
    begins[..depth]
        .iter()
        .map(|change| {
            alive += change;
            alive as usize
        })
        .collect()
}

/// Cuts the arrays into level after level, and each level into one share for each chunk.
fn divide<'a>(
    counts: &[Vec<usize>],
    depth: usize,
    mut tokens: &'a mut [u32],
    mut offsets: &'a mut [u32],
) -> Vec<Vec<LevelShare<'a>>> {
    let mut shares: Vec<Vec<LevelShare>> = counts
        .iter()
        .map(|_| Vec::with_capacity(depth + 1))
        .collect();
    let mut first_edge = 0;
    for level in 0..=depth {
        for (share, counts) in shares.iter_mut().zip(counts) {
            let count = counts.get(level).copied().unwrap_or(0);
            let (level_tokens, other_tokens) = tokens.split_at_mut(count);
            let (level_offsets, other_offsets) = offsets.split_at_mut(count);
            (tokens, offsets) = (other_tokens, other_offsets);
            share.push(LevelShare {
                first_edge,
                used: 0,
                tokens: level_tokens,
                offsets: level_offsets,
            });
            first_edge += count as u32;
        }
    }
    shares
}

fn fill_chunk(
    paths: &Paths,
    chunk: &[SortedPath],
    first_path: u32,
    mut levels: Vec<LevelShare>,
) -> Vec<LeafStart> {
    let mut leaves = Vec::with_capacity(chunk.len());
    for (index, path) in chunk.iter().enumerate() {
        for depth in path.shared as usize..path.length as usize {
            // Whatever this path adds one level deeper comes after this node, so the deeper
            // level's next edge is the first of this node's children.
            let first_child_edge = levels[depth + 1].next_edge();
            let level = &mut levels[depth];
            level.tokens[level.used] = paths.token(path, depth);
            level.offsets[level.used] = first_child_edge;
            level.used += 1;
        }
        if path.shared < path.length {
            let leaf = levels[path.length as usize - 1].next_edge();
            leaves.push((leaf, first_path + index as u32));
        }
    }
    leaves
}

/// Lists the items leaf by leaf: those of a leaf are neighbours in the sorted order.
fn place_items(paths: &Paths, sorted: &[SortedPath], starts: Vec<LeafStart>) -> Leaves {
    let mut offsets = Vec::with_capacity(starts.len() + 1);
    let mut order = Vec::with_capacity(sorted.len());
    offsets.push(0);
    for &(_, start) in &starts {
        order.push(start);
        let sharing = sorted[start as usize + 1..]
            .iter()
            .take_while(|path| path.shared == path.length)
            .count() as u32;
        order.extend(start + 1..=start + sharing);
        offsets.push(order.len() as u32);
    }
    Leaves {
        nodes: starts.into_iter().map(|(node, _)| node).collect(),
        offsets,
        items: order
            .into_par_iter()
            .with_min_len(PATHS_PER_CHUNK)
            .map(|index| paths.id(&sorted[index as usize]))
            .collect(),
    }
}
