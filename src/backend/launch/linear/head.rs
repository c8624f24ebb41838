//! An inverted index from the tokens of a batch to the sets that have them, for the gradient of the head.

use super::params::LinearSegment;
use super::rows::LinearRows;
use crate::{TokenSet, TokenSets};

/// An inverted index: for each tile of the batch's distinct tokens, the sets that have some of them.
#[derive(Debug, Clone, Default)]
pub(super) struct HeadTiles {
    /// The distinct tokens, rising.
    pub tokens: Vec<u32>,
    /// Tile by tile, each in the order of the groups.
    pub segments: Vec<LinearSegment>,
    /// Where the segments of each tile begin, and where those of the last end.
    pub starts: Vec<u32>,
}

impl HeadTiles {
    /// Mirrors `tile_tokens` and `tile_columns` of the kernel, and `sizeof(HeadShared)`.
    pub const TOKENS: usize = 64;
    pub const COLUMNS: u32 = 128;
    pub const SHARED_BYTES: u32 = 39_424;

    /// Indexes the tokens of rows over `sets`, which are listed. Sets without a row that has a loss have no gradient.
    pub fn new(rows: &LinearRows, sets: &TokenSets) -> Self {
        let listed = rows.sets.iter().enumerate().filter(|(_, set)| set.has_loss);
        let listed: Vec<(usize, &[u32])> = listed
            .filter_map(|(group, set)| Some((group, tokens_of(sets, set.first_token)?)))
            .collect();
        let mut tokens: Vec<u32> = listed
            .iter()
            .flat_map(|(_, tokens)| *tokens)
            .copied()
            .collect();
        tokens.sort_unstable();
        tokens.dedup();
        let tile_of = |token: u32| tokens.partition_point(|&other| other < token) / Self::TOKENS;
        let mut by_tile = Vec::new();
        for (group, tokens) in listed {
            let mut first = 0;
            for stretch in tokens.chunk_by(|&a, &b| tile_of(a) == tile_of(b)) {
                let segment = LinearSegment {
                    group: group as u32,
                    first,
                    count: stretch.len() as u32,
                    rows_before: 0,
                };
                by_tile.push((tile_of(stretch[0]), segment));
                first += segment.count;
            }
        }
        // Stable: the segments of a tile stay in the order of the groups.
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

/// Returns the tokens of the set that begins there among those of all sets.
fn tokens_of(sets: &TokenSets, first_token: u32) -> Option<&[u32]> {
    let (offsets, _) = sets.as_raw()?;
    // Of sets that begin there, all but the last are empty.
    let set = offsets
        .partition_point(|&offset| offset <= first_token)
        .checked_sub(1)?;
    match sets.get(set as u32)? {
        TokenSet::Listed(tokens) => Some(tokens),
        TokenSet::All { .. } => None,
    }
}
