//! The inverted index for the gradient of the head: from tiles of tokens to the rows whose sets contain them.

use super::params::LinearSegment;
use super::rows::LinearRows;
use crate::{TokenSet, TokenSets};

/// An inverted index: for each tile of the batch's distinct tokens, the sets that contain some of them.
#[derive(Debug, Clone, Default)]
pub(super) struct HeadTiles {
    /// The distinct tokens that take a gradient, ascending.
    pub tokens: Vec<u32>,
    /// The segments, sorted by tile and within a tile by group.
    pub segments: Vec<LinearSegment>,
    /// The index of the first segment of each tile, and the number of all segments.
    pub starts: Vec<u32>,
}

impl HeadTiles {
    /// The tokens of a tile. Mirrors `tile_tokens` of the kernel.
    pub const TOKENS: usize = 64;
    /// The columns of a tile. Mirrors `tile_columns` of the kernel.
    pub const COLUMNS: u32 = 128;
    /// The shared memory of a block. Mirrors `sizeof(HeadShared)` of the kernel.
    pub const SHARED_BYTES: u32 = 39_424;

    /// Builds the index of the tokens from `first_token` on of rows over listed `sets`. Sets without a row that has a loss are
    /// left out, as they have no gradient.
    pub fn new(rows: &LinearRows, sets: &TokenSets, first_token: u32) -> Self {
        let listed = rows.sets.iter().enumerate().filter(|(_, set)| set.has_loss);
        // The group, the rank of the first token that takes a gradient, and the tokens from that on.
        let listed: Vec<(usize, usize, &[u32])> = listed
            .filter_map(|(group, set)| {
                let tokens = tokens_of(sets, set.first_token)?;
                let first_rank = tokens.partition_point(|&token| token < first_token);
                Some((group, first_rank, &tokens[first_rank..]))
            })
            .collect();
        let mut tokens: Vec<u32> = listed
            .iter()
            .flat_map(|(.., tokens)| *tokens)
            .copied()
            .collect();
        tokens.sort_unstable();
        tokens.dedup();
        let tile_of = |token: u32| tokens.partition_point(|&other| other < token) / Self::TOKENS;
        let mut by_tile = Vec::new();
        for (group, first_rank, tokens) in listed {
            let mut first = first_rank as u32;
            for segment_tokens in tokens.chunk_by(|&a, &b| tile_of(a) == tile_of(b)) {
                let segment = LinearSegment {
                    group: group as u32,
                    first,
                    count: segment_tokens.len() as u32,
                    rows_before: 0,
                };
                by_tile.push((tile_of(segment_tokens[0]), segment));
                first += segment.count;
            }
        }
        // The sort is stable, so the segments of a tile stay in the order of the groups.
        by_tile.sort_by_key(|(tile, _)| *tile);
        let mut starts = vec![0];
        let mut segments = Vec::with_capacity(by_tile.len());
        for of_tile in by_tile.chunk_by(|a, b| a.0 == b.0) {
            let mut rows_before = 0;
            for (_, segment) in of_tile {
                segments.push(LinearSegment {
                    rows_before,
                    ..*segment
                });
                rows_before += rows.sets[segment.group as usize].rows;
            }
            starts.push(segments.len() as u32);
        }
        Self {
            tokens,
            segments,
            starts,
        }
    }
}

/// Returns the tokens of the listed set whose first token has index `first_token` among those of all sets.
fn tokens_of(sets: &TokenSets, first_token: u32) -> Option<&[u32]> {
    let (offsets, _) = sets.as_raw()?;
    // Of the sets that begin at this index, all but the last are empty.
    let set = offsets
        .partition_point(|&offset| offset <= first_token)
        .checked_sub(1)?;
    match sets.get(set as u32)? {
        TokenSet::Listed(tokens) => Some(tokens),
        TokenSet::All { .. } => None,
    }
}
