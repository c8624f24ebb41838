//! Which ragged rows several blocks share.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::LinearRows;

/// Mirrors `LinearParts` of `kernels/linear_parts.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct LinearParts {
    scored: u64,
    arrived: u64,
    rows: u32,
    most: u32,
    tokens: u32,
    unused: u32,
}

const _: () = assert!(size_of::<LinearParts>() == 32 && offset_of!(LinearParts, rows) == 16);

/// The first ragged rows, those of more than so many tokens, in parts that a block takes at a time.
/// Otherwise one long set keeps a block long after all others are done: blocks take rows at the same
/// time, but the tiles of a row one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    /// How many rows.
    pub rows: u32,
    /// The parts of the longest.
    pub most: u32,
    /// The tokens of a part: whole tiles, one wherever that does.
    pub tokens: u32,
}

impl Parts {
    /// One block puts the parts of a row together, and reads a gradient of each.
    const MOST: u32 = 16;
    /// The f64 that `ScoredPart` of `kernels/linear_parts.cuh` takes.
    const SCORED: usize = 4;

    /// For blocks that take tiles of so many tokens, of which so many are resident. A part is no less than
    /// a block's share of all tokens: where every block has enough to do, rows need not be shared.
    pub fn new(rows: &LinearRows, tile: u32, resident: u32) -> Self {
        let longest = rows.longest_ragged;
        let share = rows.ragged_scores.div_ceil(u64::from(resident.max(1)));
        let tokens = (share.min(longest.into()) as u32)
            .max(longest.div_ceil(Self::MOST))
            .max(1)
            .checked_next_multiple_of(tile.max(1))
            .unwrap_or(longest);
        let shared = rows.ragged_sizes().take_while(|&size| size > tokens);
        match shared.count() {
            0 => Self {
                rows: 0,
                most: 1,
                tokens,
            },
            shared => Self {
                rows: shared as u32,
                most: longest.div_ceil(tokens),
                tokens,
            },
        }
    }

    /// How many parts there are.
    pub fn count(&self, rows: &LinearRows) -> usize {
        let shared = rows.ragged_sizes().take(self.rows as usize);
        shared.map(|size| size.div_ceil(self.tokens) as usize).sum()
    }

    /// The gradients that there is room for: as many a row as the longest has.
    pub fn gradients(&self) -> usize {
        self.rows as usize * self.most as usize
    }

    /// The f64 of what parts leave of their scores.
    pub fn scored(&self) -> usize {
        self.gradients() * Self::SCORED
    }

    /// How many tokens of a ragged row blocks take at a time, in their order; none of a grouped row.
    pub fn items<'a>(&self, rows: &'a LinearRows) -> impl Iterator<Item = u32> + 'a {
        let Self { tokens, most, .. } = *self;
        let shared = self.rows as usize;
        let grouped = std::iter::repeat_n(0, rows.grouped());
        let parts = (0..most).flat_map(move |part| {
            let of = move |size: u32| size.saturating_sub(part * tokens).min(tokens);
            rows.ragged_sizes().take(shared).map(of)
        });
        grouped.chain(parts).chain(rows.ragged_sizes().skip(shared))
    }

    /// The most tiles, of so many tokens, that one of so many blocks takes.
    pub fn longest_chain(&self, rows: &LinearRows, tile: u32, blocks: u32) -> u32 {
        let mut tiles = vec![0; blocks as usize];
        for (item, tokens) in self.items(rows).enumerate() {
            tiles[item % blocks as usize] += tokens.div_ceil(tile.max(1));
        }
        tiles.into_iter().max().unwrap_or(0)
    }

    pub fn params(&self, scored: u64, arrived: u64) -> LinearParts {
        LinearParts {
            scored,
            arrived,
            rows: self.rows,
            most: self.most,
            tokens: self.tokens,
            unused: 0,
        }
    }
}
