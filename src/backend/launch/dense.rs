//! The plan of the loss over logits: `kernels/dense_forward.cu` and `kernels/dense_backward.cu`.

mod backward;
mod forward;
mod rows;

pub use rows::DenseRows;

use backward::DenseBackward;
use forward::DenseForward;

use super::{
    DeviceLimits, DeviceMatrix, DevicePtr, Element, ForwardResults, Lifetime, Stream,
    TemperaturePlan, TokenSetsView, Upstream, WARP, kernel_params,
};
use crate::{Error, Result};

/// Mirrors `chunk` of the kernels: the packets that a warp writes at a time.
const CHUNK: u64 = 512;
/// Mirrors `Tile::bytes` of `kernels/gradient.cuh`.
const TILE_BYTES: u32 = 1024;
/// Mirrors `Softmax` of `kernels/softmax.cuh`.
const SOFTMAX_BYTES: usize = 12;

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

/// Returns how many warp-sized pieces a gradient row has.
fn chunks(width: u32, element: Element) -> u64 {
    let packet = u64::from(16 / element.bytes());
    (u64::from(width) + 2 * packet - 2) / packet / CHUNK + 1
}

/// Refuses a vocabulary that is too large: the kernels count the elements of a row in 32 bits.
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

kernel_params! {
    /// Logits and rows, as the kernels take them.
    pub struct DenseBatch in "dense.cuh" {
        logits: Option<DevicePtr>, rows: Option<DevicePtr>, ignored: Option<DevicePtr>,
        sets: TokenSetsView, row_stride: u64, width: u64, loss_row_count: u32, first_statistics: u32,
        row_count: u32, ignored_count: u32,
    }
}

/// A plan for the loss over one batch of logits `[N, V]`, whose passes are issued to a [`Stream`].
#[derive(Debug, Clone)]
pub struct DensePlan {
    rows: DenseRows,
    element: Element,
    width: u32,
    limits: DeviceLimits,
}

/// The inputs of a forward pass in device memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseTensors {
    /// The logits `[N, V]`.
    pub logits: DeviceMatrix,
    /// The token sets that the rows name.
    pub sets: TokenSetsView,
    /// One f64: the temperature so far; `None` where it is not on the device.
    pub previous: Option<DevicePtr>,
}

/// What a forward pass has saved for the backward pass, in kept memory of its stream.
#[derive(Debug, Clone, Copy)]
pub struct DenseSaved {
    batch: DenseBatch,
    /// The softmax of each row that has a loss; `None` where there is none.
    softmaxes: Option<DevicePtr>,
}

impl DensePlan {
    /// Plans passes over logits of `width` elements a position.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a width that 32 bits do not count.
    pub fn new(
        rows: DenseRows,
        element: Element,
        width: usize,
        limits: &DeviceLimits,
    ) -> Result<Self> {
        Ok(Self {
            rows,
            element,
            width: check_width(width)?,
            limits: *limits,
        })
    }

    /// Returns the rows of the batch.
    #[must_use]
    pub fn rows(&self) -> &DenseRows {
        &self.rows
    }

    /// Returns whether a forward pass loads every valid logit from memory once: whether all rows fit what their blocks can
    /// keep on chip.
    #[doc(hidden)]
    #[must_use]
    pub fn caches_all_rows(&self, temperature: TemperaturePlan, with_gradient: bool) -> bool {
        DenseForward::new(self, temperature, with_gradient).caches_all_rows()
    }

    /// Issues the forward pass: statistics, temperature, loss and, where `gradient` says where it goes, the gradient of the
    /// logits `[N, V]` for an upstream gradient of 1. The gradient may overwrite the logits.
    ///
    /// # Safety
    /// The rows must name sets of `tensors.sets` and ranks in them, and tokens below the width. The addresses must be of
    /// buffers of the sizes that are said there, on the device of `stream`, and live until what is issued is done, unread
    /// and unwritten by others.
    ///
    /// # Errors
    /// What `stream` says.
    pub unsafe fn issue_forward<S: Stream>(
        &self,
        stream: &mut S,
        tensors: &DenseTensors,
        temperature: TemperaturePlan,
        gradient: Option<DeviceMatrix>,
        results: &ForwardResults,
    ) -> Result<DenseSaved, S::Error> {
        let rows = &self.rows;
        let forward = DenseForward::new(self, temperature, gradient.is_some());
        let [row_table, ignored, block_counter] = stream.upload([
            ("rows", bytemuck::cast_slice(&rows.rows)),
            ("ignored", &rows.ignored),
            ("block counter", &[0]),
        ])?;
        let softmax_bytes = rows.loss_row_count as usize * SOFTMAX_BYTES;
        let [softmaxes] = stream.allocate(Lifetime::Kept, [("softmaxes", softmax_bytes)])?;
        let partial_bytes = forward.partials() * size_of::<f64>();
        let [partials] = stream.allocate(Lifetime::Scratch, [("partials", partial_bytes)])?;
        let saved = DenseSaved {
            batch: DenseBatch {
                logits: tensors.logits.address,
                rows: row_table,
                ignored,
                sets: tensors.sets,
                row_stride: tensors.logits.row_stride,
                width: self.width.into(),
                loss_row_count: rows.loss_row_count,
                first_statistics: rows.first_statistics,
                row_count: rows.rows.len() as u32,
                ignored_count: rows.ignored.len() as u32,
            },
            softmaxes,
        };
        let scratch = [partials, block_counter];
        let launch = forward.launch(&saved, gradient, tensors.previous, scratch, results);
        // SAFETY: the parameters are the plan's, and the buffers have the sizes that it asks for; for those of the caller,
        // the caller answers.
        unsafe { stream.launch(&launch) }?;
        Ok(saved)
    }

    /// Issues the backward pass, which writes the gradient of the logits `[N, V]`. It may overwrite the logits.
    ///
    /// # Safety
    /// `saved` must be of this plan and its memory still kept; the logits of the forward pass must be where they were. The
    /// addresses must be of such buffers as in [`issue_forward`](Self::issue_forward).
    ///
    /// # Errors
    /// What `stream` says.
    pub unsafe fn issue_backward<S: Stream>(
        &self,
        stream: &mut S,
        saved: &DenseSaved,
        upstream: &Upstream,
        gradient: DeviceMatrix,
    ) -> Result<(), S::Error> {
        match DenseBackward::new(self) {
            // SAFETY: as in `issue_forward`.
            Some(backward) => unsafe { stream.launch(&backward.launch(saved, upstream, gradient)) },
            None => Ok(()),
        }
    }
}
