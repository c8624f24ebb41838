//! How a batch is cut into pieces of work for blocks.

use std::cmp::Reverse;
use std::ops::Range;

use super::params::{LinearForwardParams, LinearGroup, LinearItem};
use super::rows::{LinearRows, SetRows};
use crate::backend::launch::{DeviceLimits, Element};
use crate::{Error, Result};

/// Tokens of a set whose scores have one record a row: `LinearGroup::tile`.
const TILE_TOKENS: u32 = 64;
/// Rows of an item: `LinearShared::most_rows`.
const MOST_ROWS: u32 = 64;
/// Tokens of a gradient's item whose set is listed: `LinearShared::most_tokens`.
const MOST_TOKENS: u32 = 2048;
/// Columns of the gradient for eight rows; half as many for twice as many rows, and so on.
const MOST_COLUMNS: u32 = 1024;
/// An item that would load less is not cut into slices, which would cost more than they save.
const LEAST_SLICE_BYTES: u64 = 64 << 10;

/// The shared memory of a block, in bytes, and how many blocks are resident.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockShape {
    pub blocks: u32,
    pub shared_bytes: u32,
    pub stage_bytes: u32,
}

impl BlockShape {
    /// `sizeof(LinearShared)`.
    const FIXED_BYTES: u32 = 18_288;
    const STAGES: u32 = 3;
    /// Where a stage would be smaller, blocks have a multiprocessor each.
    const ENOUGH_STAGE_BYTES: u32 = 20 << 10;
    /// All stages hold what warps add up in the end, `BlockGemm::bytes`; and a stage 64 rows by 64
    /// tokens, or by 16 tokens with as many columns.
    const LEAST_STAGE_BYTES: u32 = 14 << 10;

    pub fn new(limits: &DeviceLimits) -> Result<Self> {
        let with = |blocks: u32, least: u32| {
            let bytes = limits.shared_bytes_of_each(blocks);
            let stage_bytes = bytes.saturating_sub(Self::FIXED_BYTES) / Self::STAGES / 16 * 16;
            (stage_bytes >= least).then_some(Self {
                blocks: limits.multiprocessors * blocks,
                shared_bytes: Self::FIXED_BYTES + Self::STAGES * stage_bytes,
                stage_bytes,
            })
        };
        with(LinearForwardParams::KERNEL.blocks, Self::ENOUGH_STAGE_BYTES)
            .or_else(|| with(1, Self::LEAST_STAGE_BYTES))
            .filter(|shape| shape.blocks > 0)
            .ok_or_else(|| Error::Unsupported {
                what: "device",
                expected: format!(
                    "{} bytes of shared memory for a block",
                    Self::FIXED_BYTES + Self::STAGES * Self::LEAST_STAGE_BYTES
                ),
                actual: format!("{}", limits.shared_bytes_of_each(1)),
            })
    }

    /// The most columns of a gradient's item, whose stage holds 16 tokens at the least.
    fn most_columns(&self, rows: u32, element: Element) -> u32 {
        let by_registers = MOST_COLUMNS / rows.div_ceil(8).next_power_of_two();
        let of_token = (self.stage_bytes - 80 * rows) / 16;
        let by_stage = (of_token - 16) / element.bytes() / 16 * 16;
        by_registers.min(by_stage)
    }
}

/// The work of one launch.
#[derive(Debug, Clone, Default)]
pub(super) struct Chunk {
    /// The items that compute scores.
    pub scores: Range<usize>,
    /// Its rows: the first, and how many.
    pub rows: [u32; 2],
    /// The items that compute the loss and its gradient.
    pub gradients: Range<usize>,
}

/// All pieces of work of a batch.
#[derive(Debug, Clone, Default)]
pub(super) struct Items {
    pub groups: Vec<LinearGroup>,
    pub items: Vec<LinearItem>,
    pub chunks: Vec<Chunk>,
    /// How many f32 of scores the largest chunk has, and how many records all chunks have.
    pub scores: u64,
    pub records: u64,
    /// How many packets of partial sums, and how many counters, the largest launch has.
    pub partials: u32,
    pub counters: u32,
}

/// A part of the rows of a group, or of its tokens or columns.
#[derive(Clone, Copy)]
struct Cut {
    first: u32,
    count: u32,
}

/// An item before it is cut into slices of what it sums over.
struct Tile {
    group: u32,
    rows: Cut,
    columns: Cut,
    inner: u32,
    /// Slices begin at multiples of this, and have no more than `most`.
    step: u32,
    most: u32,
    /// The bytes that are loaded for each term of the sums.
    inner_bytes: u64,
}

/// Cuts `count` into pieces of `most` at most and of about the same size, a multiple of `step`.
fn cuts(count: u32, most: u32, step: u32) -> impl Iterator<Item = Cut> + Clone {
    let each = count
        .div_ceil(count.div_ceil(most).max(1))
        .next_multiple_of(step);
    (0..count.div_ceil(each.max(1))).map(move |index| Cut {
        first: index * each,
        count: each.min(count - index * each),
    })
}

impl Items {
    /// Cuts the work of the loss and, with `gradient`, of its gradient. Over the whole vocabulary the rows are taken in chunks, so
    /// that no more than `most_scores` are in memory at a time, but for those of one row.
    pub fn new(
        rows: &LinearRows,
        element: Element,
        width: u32,
        gradient: bool,
        most_scores: usize,
        shape: &BlockShape,
    ) -> Self {
        let mut items = Self::default();
        let chunks: Vec<Vec<SetRows>> = match rows.sets.first() {
            Some(whole) if rows.is_whole_vocabulary => {
                let most =
                    (most_scores as u64 / u64::from(whole.tokens)).clamp(1, u64::from(whole.rows));
                let of_rows = |cut: Cut| SetRows {
                    first_row: cut.first,
                    rows: cut.count,
                    ..*whole
                };
                cuts(whole.rows, most as u32, 1)
                    .map(|cut| vec![of_rows(cut)])
                    .collect()
            }
            _ => vec![rows.sets.clone()],
        };
        for sets in chunks {
            let first_group = items.groups.len();
            items.add_groups(&sets, 0);
            let groups = first_group..items.groups.len();
            let scores = items.score_tiles(groups.clone(), element, width);
            let gradients =
                items.gradient_tiles(groups, element, if gradient { width } else { 0 }, shape);
            let chunk = Chunk {
                rows: [
                    sets.first().map_or(0, |set| set.first_row),
                    sets.iter().map(|set| set.rows).sum(),
                ],
                scores: items.add_tiles(&scores, shape),
                gradients: items.add_tiles(&gradients, shape),
            };
            items.chunks.push(chunk);
        }
        items
    }

    /// Cuts the work of the scores of all rows with a part of the whole vocabulary at a time.
    pub fn by_tokens(
        rows: &LinearRows,
        element: Element,
        width: u32,
        most_scores: usize,
        shape: &BlockShape,
    ) -> Self {
        let mut items = Self::default();
        for whole in &rows.sets {
            let most = (most_scores as u64 / u64::from(whole.rows))
                .clamp(1, u64::from(whole.tokens)) as u32;
            for cut in cuts(
                whole.tokens,
                most.next_multiple_of(TILE_TOKENS),
                TILE_TOKENS,
            ) {
                let part = SetRows {
                    first_token: cut.first,
                    tokens: cut.count,
                    ..*whole
                };
                items.add_groups(&[part], cut.first);
                let last = items.groups.len() - 1;
                let tiles = items.score_tiles(last..last + 1, element, width);
                let chunk = Chunk {
                    rows: [part.first_row, part.rows],
                    scores: items.add_tiles(&tiles, shape),
                    gradients: 0..0,
                };
                items.chunks.push(chunk);
            }
        }
        items
    }

    /// Scores of a chunk begin where those of another do; records stay until all chunks are done.
    fn add_groups(&mut self, sets: &[SetRows], first_rank: u32) {
        let mut scores = 0;
        for set in sets {
            self.groups.push(LinearGroup {
                first_token: set.first_token,
                tokens: set.tokens,
                first_row: set.first_row,
                rows: set.rows,
                scores,
                records: self.records,
                first_rank,
                unused: [0; 3],
            });
            scores += u64::from(set.rows) * u64::from(set.tokens.next_multiple_of(4));
            self.records += u64::from(set.rows) * u64::from(set.tokens.div_ceil(TILE_TOKENS));
        }
        self.scores = self.scores.max(scores);
    }

    fn score_tiles(&self, groups: Range<usize>, element: Element, width: u32) -> Vec<Tile> {
        let mut tiles = Vec::new();
        for (index, group) in groups.clone().zip(&self.groups[groups]) {
            for columns in cuts(group.tokens, TILE_TOKENS, TILE_TOKENS) {
                tiles.extend(cuts(group.rows, MOST_ROWS, 8).map(|rows| Tile {
                    group: index as u32,
                    rows,
                    columns,
                    inner: width,
                    step: 64,
                    most: u32::MAX,
                    inner_bytes: u64::from(element.bytes() * (rows.count + columns.count)),
                }));
            }
        }
        tiles
    }

    fn gradient_tiles(
        &self,
        groups: Range<usize>,
        element: Element,
        width: u32,
        shape: &BlockShape,
    ) -> Vec<Tile> {
        let mut tiles = Vec::new();
        for (index, group) in groups.clone().zip(&self.groups[groups]) {
            for rows in cuts(group.rows, MOST_ROWS, 8) {
                let tile = |columns: Cut| Tile {
                    group: index as u32,
                    rows,
                    columns,
                    inner: group.tokens,
                    step: 16,
                    most: MOST_TOKENS,
                    inner_bytes: u64::from(element.bytes() * columns.count + 4 * rows.count),
                };
                let most = shape.most_columns(rows.count, element);
                tiles.extend(cuts(width, most, 16).map(tile));
                // Without columns the loss remains.
                tiles.extend((width == 0).then(|| tile(Cut { first: 0, count: 0 })));
            }
        }
        tiles
    }

    /// Cuts tiles into slices, so that no block has much more to do than others, and gives which items
    /// they are: the longest first.
    fn add_tiles(&mut self, tiles: &[Tile], shape: &BlockShape) -> Range<usize> {
        let bytes = |tile: &Tile| u64::from(tile.inner) * tile.inner_bytes;
        let all: u64 = tiles.iter().map(bytes).sum();
        let share = (all / u64::from(shape.blocks)).max(LEAST_SLICE_BYTES);
        // The first two are those of the grid and of the items that are taken.
        let (mut partials, mut counters) = (0u64, 2);
        let mut sized = Vec::new();
        for tile in tiles {
            let slices = bytes(tile)
                .div_ceil(share)
                .max(1)
                .min(u64::from(tile.inner)) as u32;
            let most = tile
                .inner
                .div_ceil(slices)
                .next_multiple_of(tile.step)
                .min(tile.most);
            let slices = cuts(tile.inner, most, tile.step);
            let count = slices.clone().count() as u32;
            for (slice, inner) in slices.enumerate() {
                let item = LinearItem {
                    group: tile.group,
                    first_row: tile.rows.first,
                    rows: tile.rows.count,
                    first: tile.columns.first,
                    count: tile.columns.count,
                    inner_first: inner.first,
                    inner_count: inner.count,
                    slice: slice as u32,
                    slices: count,
                    partials: partials as u32,
                    counter: counters,
                    unused: 0,
                };
                sized.push((Reverse(u64::from(inner.count) * tile.inner_bytes), item));
            }
            if count > 1 {
                // Columns in whole fragments, and a packet for the sum of a row.
                let pitch = tile.columns.count.next_multiple_of(16) + 4;
                partials += u64::from(count) * u64::from(tile.rows.count) * u64::from(pitch / 4);
                counters += 1;
            }
        }
        // Stable: neighbours, which read the same head rows, stay together.
        sized.sort_by_key(|(size, _)| *size);
        let first = self.items.len();
        self.items.extend(sized.into_iter().map(|(_, item)| item));
        self.partials = self.partials.max(partials as u32);
        self.counters = self.counters.max(counters);
        first..self.items.len()
    }
}
