//! The paths in lexicographic order: partitioned by their first tokens, then sorted part by part.

use std::cmp::Ordering;
use std::ops::Range;

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::packing::{Packing, chunks, survey};
use super::too_large;
use crate::{Error, Result};

/// The number of parts that are sorted by themselves. Ten million paths make parts of 300 KiB.
const PARTS: usize = 1024;
/// A part of at least this many paths is worth more than one thread.
const PATHS_PER_PART: usize = 1 << 16;

/// The input, checked, with the packing of its tokens into sort keys.
pub(super) struct Paths<'a> {
    ids: &'a [u64],
    offsets: &'a [usize],
    tokens: &'a [u32],
    pub max_token: u32,
    packing: Packing,
}

/// A path in the sorted order, with what the later stages would have to look up far away.
#[derive(Clone, Copy, Zeroable)]
pub(super) struct SortedPath {
    /// The first tokens of the path.
    key: u128,
    /// The id of its item.
    pub id: u64,
    /// The index of the path in the input.
    path: u32,
    /// Its length in tokens.
    pub length: u32,
}

impl<'a> Paths<'a> {
    pub fn new(ids: &'a [u64], offsets: &'a [usize], tokens: &'a [u32]) -> Result<Self> {
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
        if ids.len() >= u32::MAX as usize {
            return Err(too_large("paths", ids.len()));
        }
        let survey = survey(offsets, tokens).map_err(|path| no_path(ids, offsets, tokens, path))?;
        if survey.highest.len() >= u32::MAX as usize {
            return Err(too_large("tokens of a path", survey.highest.len()));
        }
        let max_token = survey.highest.iter().copied().max().unwrap_or(0);
        if max_token == u32::MAX {
            return Err(too_large("token", max_token as usize));
        }
        Ok(Self {
            ids,
            offsets,
            tokens,
            max_token,
            packing: Packing::new(&survey),
        })
    }

    fn path(&self, path: u32) -> &'a [u32] {
        &self.tokens[self.offsets[path as usize]..self.offsets[path as usize + 1]]
    }

    /// Returns the tokens of `path` beyond those that a key holds.
    fn beyond_key(&self, path: &SortedPath) -> &'a [u32] {
        self.path(path.path)
            .get(self.packing.tokens()..)
            .unwrap_or(&[])
    }

    pub fn token(&self, path: &SortedPath, depth: usize) -> u32 {
        if depth < self.packing.tokens() {
            self.packing.token(path.key, depth)
        } else {
            self.path(path.path)[depth]
        }
    }

    /// Returns the paths in lexicographic order, equal ones by item id.
    pub fn sort(&self) -> Vec<SortedPath> {
        let (mut sorted, parts) = self.partition();
        (split(&mut sorted, &parts).into_par_iter()).for_each_init(Vec::new, |unsorted, part| {
            // The parts of an even partition are small, and the sequential sort is the faster one.
            if part.len() < PATHS_PER_PART {
                self.sort_part(part, unsorted);
            } else {
                part.par_sort_unstable_by(|a, b| self.compare(a, b));
            }
        });
        sorted
    }

    /// Returns the paths ordered by the highest bits of their keys, and how many have the same. The parts that remain to be
    /// sorted fit a core's cache.
    fn partition(&self) -> (Vec<SortedPath>, Vec<usize>) {
        let count = self.ids.len();
        let part = |key: u128| (key >> (u128::BITS - PARTS.ilog2())) as usize;
        let leading = self.packing.tokens_in(PARTS.ilog2());
        let chunks = chunks(count);
        let counts: Vec<Vec<usize>> = (chunks.par_iter())
            .map(|chunk| {
                let mut counts = vec![0; PARTS];
                for path in chunk.clone() {
                    let path = self.path(path as u32);
                    let path = path.get(..leading).unwrap_or(path);
                    counts[part(self.packing.pack(path))] += 1;
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
                let key = self.packing.pack(tokens);
                if let Some(place) = parts[part(key)].next() {
                    *place = SortedPath {
                        key,
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

    /// Distributes the part by the key's next bits, as many as leave few paths alike in them, and then compares these.
    /// All of it stays in a core's cache.
    fn sort_part(&self, part: &mut [SortedPath], unsorted: &mut Vec<SortedPath>) {
        let bits = part.len().max(2).ilog2();
        let stripe = |path: &SortedPath| {
            // The bits above are alike in all paths of the part.
            ((path.key << PARTS.ilog2()) >> (u128::BITS - bits)) as usize
        };
        unsorted.clear();
        unsorted.extend_from_slice(part);
        let mut ends = vec![0; 1 << bits];
        for path in &*unsorted {
            ends[stripe(path)] += 1;
        }
        let mut start = 0;
        for end in &mut ends {
            start += std::mem::replace(end, start);
        }
        for path in &*unsorted {
            let end = &mut ends[stripe(path)];
            part[*end] = *path;
            *end += 1;
        }
        let mut start = 0;
        for end in ends {
            part[start..end].sort_unstable_by(|a, b| self.compare(a, b));
            start = end;
        }
    }

    #[inline(always)]
    fn compare(&self, a: &SortedPath, b: &SortedPath) -> Ordering {
        if a.key == b.key {
            self.compare_beyond_key(a, b)
        } else {
            a.key.cmp(&b.key)
        }
    }

    /// Compares paths whose keys are equal. It is not inlined, so that the inner loop of the sort stays small.
    #[cold]
    #[inline(never)]
    fn compare_beyond_key(&self, a: &SortedPath, b: &SortedPath) -> Ordering {
        (self.beyond_key(a).cmp(self.beyond_key(b))).then_with(|| a.id.cmp(&b.id))
    }

    /// Iterates over some paths of the sorted order, each with the number of leading tokens that it shares with the one
    /// before it.
    pub fn with_shared<'s>(
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

    /// Returns the length of the longest common prefix of two paths.
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

/// Cuts `values` into part after part, and each part into one share for each chunk, as long as
/// `counts[chunk][part]` says, and returns the shares chunk by chunk.
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

/// Makes the error that says why the tokens between a path's offsets are no path.
fn no_path(ids: &[u64], offsets: &[usize], tokens: &[u32], path: usize) -> Error {
    let (item, start, end) = (ids[path], offsets[path], offsets[path + 1]);
    if start == end {
        return Error::EmptyPath { item };
    }
    Error::Malformed {
        what: "path offsets",
        detail: format!(
            "at item {item} they run from {start} to {end}, of {} tokens",
            tokens.len()
        ),
    }
}
