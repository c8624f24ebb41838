//! Plans for `kernels/dense_forward.cu` and `kernels/dense_backward.cu`: the loss over logits.

mod backward;
mod forward;
mod rows;

pub use backward::{DenseBackward, DenseBackwardBuffers};
pub use forward::{DenseForward, DenseForwardBuffers};
pub use rows::DenseRows;

use super::{DevicePtr, Element, TokenSetsView, WARP, kernel_params};
use crate::{Error, Result};

/// Mirrors `chunk` of the kernels: the packets that a warp writes at a time.
const CHUNK: u64 = 512;
/// Mirrors `Tile::bytes` of `kernels/gradient.cuh`.
const TILE_BYTES: u32 = 1024;

/// Threads of a block where the longest set has up to so many tokens: short sets leave threads idle,
/// and many rows under way make up for the waits of each; of long sets few rows should be under way,
/// so that what is looked at twice is still on the chip. The same with and without a gradient, so
/// that sums come out the same to the bit.
const THREADS: [(u32, u32); 4] = [(256, 64), (2048, 128), (16_384, 256), (u32::MAX, 512)];

fn threads(rows: &DenseRows) -> u32 {
    let longest = rows.sizes.iter().copied().max().unwrap_or(0);
    let fits = THREADS.iter().find(|(limit, _)| longest <= *limit);
    fits.map_or(WARP, |(_, threads)| *threads)
}

/// Warp-sized pieces of one gradient row.
fn chunks(width: u32, element: Element) -> u64 {
    let packet = u64::from(16 / element.bytes());
    (u64::from(width) + 2 * packet - 2) / packet / CHUNK + 1
}

/// The kernels count the elements of a row in 32 bits.
pub(super) fn check_width(width: usize) -> Result<u32> {
    let limit = u32::MAX - 64;
    match u32::try_from(width) {
        Ok(width) if width <= limit => Ok(width),
        _ => Err(Error::TooLarge {
            what: "vocabulary of the logits",
            size: width as u64,
            limit: u64::from(limit),
        }),
    }
}

/// Where the inputs of a batch are in device memory: `None` for those without elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseInputs {
    /// The logits `[N, V]`.
    pub logits: Option<DevicePtr>,
    /// How many elements lie between the beginnings of two positions.
    pub row_stride: u64,
    /// [`DenseRows::rows`].
    pub rows: Option<DevicePtr>,
    /// [`DenseRows::idle`].
    pub idle: Option<DevicePtr>,
    /// The token sets that the rows name.
    pub sets: TokenSetsView,
}

/// Where a dense gradient goes: `[N, V]`, which may be where the logits are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradientView {
    /// Its address; `None` where there is no position.
    pub address: Option<DevicePtr>,
    /// How many elements lie between the beginnings of two positions.
    pub row_stride: u64,
}

kernel_params! {
    /// Logits and rows.
    pub struct DenseBatch in "dense.cuh" {
        logits: Option<DevicePtr>, rows: Option<DevicePtr>, idle: Option<DevicePtr>,
        sets: TokenSetsView, row_stride: u64, width: u64, counting: u32, first_statistics: u32,
        row_count: u32, idle_count: u32,
    }
}

impl DenseBatch {
    fn new(rows: &DenseRows, width: u32, inputs: &DenseInputs) -> Self {
        Self {
            logits: inputs.logits,
            rows: inputs.rows,
            idle: inputs.idle,
            sets: inputs.sets,
            row_stride: inputs.row_stride,
            width: width.into(),
            counting: rows.counting,
            first_statistics: rows.first_statistics,
            row_count: rows.rows.len() as u32,
            idle_count: rows.idle.len() as u32,
        }
    }
}
