//! The partition of a batch into items of work for blocks.

use std::cmp::Reverse;
use std::ops::Range;

use super::params::{LinearForwardParams, LinearGroup, LinearItem};
use super::rows::{LinearRows, SetRows};
use crate::backend::launch::{DeviceLimits, Element};
use crate::{Error, Result};

/// The tokens of a score item. Mirrors `LinearGroup::tile`.
const TILE_TOKENS: u32 = 64;
/// The largest number of rows of an item. Mirrors `LinearShared::max_rows`.
const MOST_ROWS: u32 = 64;
/// The largest number of tokens of a gradient item. Mirrors `LinearShared::max_tokens`.
const MOST_TOKENS: u32 = 2048;
/// The largest number of tokens of a gradient item over the whole vocabulary, whose tokens need no list. Each slice has partial
/// sums to write and to read, and the longer a slice, the more its sums in f32 round.
const MOST_TOKENS_OF_WHOLE: u32 = 16_384;
/// The largest number of columns of a gradient item of eight rows. It is halved whenever the number of rows doubles, because
/// the accumulators in registers bound the product of the two (`BlockGemm::max_fragments`).
const MOST_COLUMNS: u32 = 1024;
/// The smallest slice of an item, in bytes to load. A split into smaller slices would cost more than it saves.
const LEAST_SLICE_BYTES: u64 = 64 << 10;

/// The number of resident blocks and the shared memory of each.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockShape {
    /// The number of resident blocks on all multiprocessors.
    pub blocks: u32,
    /// The dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// The size of a stage of the pipeline, in bytes.
    pub stage_bytes: u32,
}

impl BlockShape {
    /// Mirrors `sizeof(LinearShared)`.
    const FIXED_BYTES: u32 = 18_288;
    /// Mirrors `LinearShared::stages`.
    const STAGES: u32 = 3;
    /// If a stage were smaller than this, each multiprocessor gets one block with larger stages instead.
    const ENOUGH_STAGE_BYTES: u32 = 20 << 10;
    /// The smallest stage. Three of them must hold the split-K slices of a block's warps (`BlockGemm::bytes`), and one must
    /// hold the operands of a score item of 64 rows × 64 tokens, and 16 tokens of a gradient item with 64 rows.
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

    /// Returns the largest number of columns of a gradient item, a stage of which must hold at least 16 tokens.
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
    /// The range of the score items in `Items::items`.
    pub scores: Range<usize>,
    /// The index of its first row in the batch, and the number of its rows.
    pub rows: [u32; 2],
    /// The range of the gradient items in `Items::items`.
    pub gradients: Range<usize>,
}

/// All items of a batch.
#[derive(Debug, Clone, Default)]
pub(super) struct Items {
    pub groups: Vec<LinearGroup>,
    pub items: Vec<LinearItem>,
    pub chunks: Vec<Chunk>,
    /// The scores of the largest chunk, in f32. Chunks reuse the memory.
    pub scores: u64,
    /// The number of records of all chunks.
    pub records: u64,
    /// The workspace for partial sums of the largest launch, in packets of 16 bytes. Items number them by 32 bits.
    pub partials: u64,
    /// The number of counters of the largest launch.
    pub counters: u32,
}

/// A range of the rows, tokens or columns of a group.
#[derive(Clone, Copy)]
struct Cut {
    first: u32,
    count: u32,
}

/// An output tile before its sums are cut into split-K slices.
struct Tile {
    group: u32,
    rows: Cut,
    columns: Cut,
    /// The number of terms of each sum.
    inner: u32,
    /// Slices begin at multiples of `step`, and have at most `most` terms.
    step: u32,
    most: u32,
    /// The bytes to load for each term.
    inner_bytes: u64,
}

/// Cuts `0..count` into ranges of about the same size, which is at most `most` and a multiple of `step`.
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
    /// Cuts the work of the loss and, with `gradient`, of its gradient into items. Over the whole vocabulary the rows are cut
    /// into chunks, so that at most `most_scores` scores, or those of one row, are in memory at a time.
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
            let columns = if gradient { width } else { 0 };
            let most = if rows.is_whole_vocabulary {
                MOST_TOKENS_OF_WHOLE
            } else {
                MOST_TOKENS
            };
            let gradients = items.gradient_tiles(groups, element, columns, most, shape);
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

    /// Cuts the work of the scores of all rows into items, in chunks of the tokens of the whole vocabulary from `first_token` on.
    pub fn by_tokens(
        rows: &LinearRows,
        first_token: u32,
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
                whole.tokens.saturating_sub(first_token),
                most.next_multiple_of(TILE_TOKENS),
                TILE_TOKENS,
            ) {
                let part = SetRows {
                    first_token: first_token + cut.first,
                    tokens: cut.count,
                    ..*whole
                };
                items.add_groups(&[part], part.first_token);
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

    /// Adds the groups of a chunk. Chunks reuse the memory of scores, but not that of records, which the last launch reads.
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
        most_tokens: u32,
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
                    most: most_tokens,
                    inner_bytes: u64::from(element.bytes() * columns.count + 4 * rows.count),
                };
                let most = shape.most_columns(rows.count, element);
                tiles.extend(cuts(width, most, 16).map(tile));
                // Without a gradient, an item without columns computes the loss.
                tiles.extend((width == 0).then(|| tile(Cut { first: 0, count: 0 })));
            }
        }
        tiles
    }

    /// Cuts tiles into split-K slices, so that no block has much more work than others, and appends them as items, the longest
    /// first. Returns the range of these items.
    fn add_tiles(&mut self, tiles: &[Tile], shape: &BlockShape) -> Range<usize> {
        let bytes = |tile: &Tile| u64::from(tile.inner) * tile.inner_bytes;
        let all: u64 = tiles.iter().map(bytes).sum();
        let slice_bytes = (all / u64::from(shape.blocks)).max(LEAST_SLICE_BYTES);
        // Counters 0 and 1 are those of the grid and of the item queue.
        let (mut partials, mut counters) = (0u64, 2);
        let mut sized = Vec::new();
        for tile in tiles {
            let slices = bytes(tile)
                .div_ceil(slice_bytes)
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
                // Mirrors BlockGemm::pitch: full fragments, and a packet of padding for sums of the row.
                let pitch = tile.columns.count.next_multiple_of(16) + 4;
                partials += u64::from(count) * u64::from(tile.rows.count) * u64::from(pitch / 4);
                counters += 1;
            }
        }
        // The sort is stable, so that items that read the same head rows stay close to each other.
        sized.sort_by_key(|(size, _)| *size);
        let first = self.items.len();
        self.items.extend(sized.into_iter().map(|(_, item)| item));
        self.partials = self.partials.max(partials);
        self.counters = self.counters.max(counters);
        first..self.items.len()
    }
}
