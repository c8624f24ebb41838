//! The launch plan of the loss over logits: `kernels/dense_forward.cu` and `kernels/dense_backward.cu`.

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

/// The threads of a block, by the largest size of a set in tokens. Short sets would leave threads of a large block idle, and
/// many small blocks hide each other's latencies. For long sets few rows should be in flight, so that the second read of a row
/// hits the cache. The numbers do not depend on whether there is a gradient, so that sums have the same bits with and without
/// one.
const THREADS: [(u32, u32); 4] = [(256, 64), (2048, 128), (16_384, 256), (u32::MAX, 512)];

fn threads(rows: &DenseRows) -> u32 {
    let longest = rows.sizes.iter().copied().max().unwrap_or(0);
    let fits = THREADS.iter().find(|(limit, _)| longest <= *limit);
    fits.map_or(WARP, |(_, threads)| *threads)
}

/// Returns the number of chunks of a gradient row, each of which one warp writes.
fn chunks(width: u32, element: Element) -> u64 {
    let packet = u64::from(16 / element.bytes());
    (u64::from(width) + 2 * packet - 2) / packet / CHUNK + 1
}

/// Refuses a vocabulary that is too large, as the kernels count the elements of a row in 32 bits.
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
    /// The logits and rows of a batch.
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
    /// The temperature before the pass, one f64; `None` if it is not on the device.
    pub previous: Option<DevicePtr>,
}

/// What a forward pass saves for the backward pass, in kept memory of its stream.
#[derive(Debug, Clone, Copy)]
pub struct DenseSaved {
    batch: DenseBatch,
    /// The softmax statistics of each row that has a loss; `None` if no row has one.
    softmaxes: Option<DevicePtr>,
}

impl DenseSaved {
    /// Returns the same, with the logits of the forward pass at another place.
    pub(crate) fn with_logits(mut self, logits: DeviceMatrix) -> Self {
        (self.batch.logits, self.batch.row_stride) = (logits.address, logits.row_stride);
        self
    }
}

impl DensePlan {
    /// Plans passes over logits of `width` elements a position.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a width that does not fit 32 bits.
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

    /// Returns whether a forward pass loads every valid logit from global memory only once, because all rows fit the caches of
    /// their blocks in shared memory.
    #[doc(hidden)]
    #[must_use]
    pub fn caches_all_rows(&self, temperature: TemperaturePlan, with_gradient: bool) -> bool {
        DenseForward::new(self, temperature, with_gradient).caches_all_rows()
    }

    /// Issues the forward pass, which computes statistics, temperature and loss. If `gradient` is given, it also writes the
    /// gradient of the logits `[N, V]` there, for an upstream gradient of 1. The gradient may overwrite the logits.
    ///
    /// # Safety
    /// The rows must name sets of `tensors.sets`, ranks in these sets, and tokens below the width. The addresses must be of
    /// buffers of the documented sizes on the device of `stream`. Nothing else may read, write or free them until the launches are
    /// done.
    ///
    /// # Errors
    /// Those of `stream`.
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
        // SAFETY: the parameters are those of the kernel, and the plan's own buffers have the sizes that it needs. The caller
        // promises the same of its buffers.
        unsafe { stream.launch(&launch) }?;
        Ok(saved)
    }

    /// Issues the backward pass, which writes the gradient of the logits `[N, V]`. The gradient may overwrite the logits.
    ///
    /// # Safety
    /// `saved` must be of this plan, and its memory and the logits of the forward pass must be unchanged. The addresses must be
    /// of buffers as in [`issue_forward`](Self::issue_forward).
    ///
    /// # Errors
    /// Those of `stream`.
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
