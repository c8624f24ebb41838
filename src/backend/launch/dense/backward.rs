//! The plan for `kernels/dense_backward.cu`.

use super::{
    DenseBatch, DenseInputs, DenseRows, GradientView, TILE_BYTES, check_width, chunks, threads,
};
use crate::Result;
use crate::backend::launch::{DeviceLimits, DevicePtr, Element, Launch, WARP, kernel_params};

kernel_params! {
    /// What `kernels/dense_backward.cu` is given.
    pub struct DenseBackwardParams in "dense_backward.cu" for KERNEL = "dense_backward"(512, 2) {
        batch: DenseBatch, gradient: Option<DevicePtr>, gradient_stride: u64,
        softmaxes: Option<DevicePtr>, temperature: Option<DevicePtr>, upstream: Option<DevicePtr>,
        upstream_by_position: u32, times_temperature: u32,
    }
}

/// The gradient of the logits, from what the forward pass left.
#[derive(Debug, Clone, Copy)]
pub struct DenseBackward<'a> {
    rows: &'a DenseRows,
    element: Element,
    width: u32,
    threads: u32,
    blocks: u32,
}

/// What a backward pass reads and writes, in device memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseBackwardBuffers {
    /// The gradient.
    pub gradient: GradientView,
    /// As the forward pass wrote them; `None` where no row has a loss.
    pub softmaxes: Option<DevicePtr>,
    /// As the forward pass wrote it.
    pub temperature: Option<DevicePtr>,
    /// What the loss's gradient is, as many f32 as the loss has.
    pub upstream: Option<DevicePtr>,
}

impl<'a> DenseBackward<'a> {
    /// A pass over logits of `width` elements a position. `None` where there is no position.
    ///
    /// # Errors
    /// As [`DenseForward::new`](super::DenseForward::new).
    pub fn new(
        rows: &'a DenseRows,
        element: Element,
        width: usize,
        limits: &DeviceLimits,
    ) -> Result<Option<Self>> {
        let width = check_width(width)?;
        let (kernel, threads) = (DenseBackwardParams::KERNEL, threads(rows));
        let resident = limits.resident_blocks(&kernel, threads, threads / WARP * TILE_BYTES);
        let positions = rows.positions() as u64;
        let work = (positions * chunks(width, element)).div_ceil(u64::from(threads / WARP));
        let blocks = work.min(u64::from(resident.max(1))) as u32;
        Ok((blocks > 0).then_some(Self {
            rows,
            element,
            width,
            threads,
            blocks,
        }))
    }

    /// Threads and bytes of shared memory of a block.
    #[must_use]
    pub fn block_shape(&self) -> [u32; 2] {
        [self.threads, self.threads / WARP * TILE_BYTES]
    }

    /// The launch.
    #[must_use]
    pub fn launch(
        &self,
        inputs: &DenseInputs,
        buffers: &DenseBackwardBuffers,
    ) -> Launch<DenseBackwardParams> {
        let [threads, shared_bytes] = self.block_shape();
        Launch {
            kernel: DenseBackwardParams::KERNEL.name(self.element),
            grid: [self.blocks, 1, 1],
            block: [threads, 1, 1],
            shared_bytes,
            cooperative: false,
            params: DenseBackwardParams {
                batch: DenseBatch::new(self.rows, self.width, inputs),
                gradient: buffers.gradient.address,
                gradient_stride: buffers.gradient.row_stride,
                softmaxes: buffers.softmaxes,
                temperature: buffers.temperature,
                upstream: buffers.upstream,
                upstream_by_position: (!self.rows.reduced).into(),
                times_temperature: self.rows.times_temperature.into(),
            },
        }
    }
}
