//! The plan for `kernels/dense_backward.cu`.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::{
    DenseBatch, DenseInputs, DenseRows, GradientView, TILE_BYTES, check_width, chunks, threads,
};
use crate::Result;
use crate::backend::launch::{DeviceLimits, Element, Launch, WARP};

/// Mirrors `DenseBackwardParams` of `kernels/dense_backward.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct DenseBackwardParams {
    batch: DenseBatch,
    gradient: u64,
    gradient_stride: u64,
    softmaxes: u64,
    temperature: u64,
    upstream: u64,
    upstream_by_position: u32,
    times_temperature: u32,
}

const _: () = assert!(
    size_of::<DenseBackwardParams>() == 128
        && offset_of!(DenseBackwardParams, softmaxes) == 96
        && offset_of!(DenseBackwardParams, upstream) == 112
);

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DenseBackwardBuffers {
    /// The gradient.
    pub gradient: GradientView,
    /// As the forward pass wrote them.
    pub softmaxes: u64,
    /// As the forward pass wrote it.
    pub temperature: u64,
    /// What the loss's gradient is, as many f32 as the loss has.
    pub upstream: u64,
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
        let threads = threads(rows);
        let resident = limits.resident_blocks(threads, threads / WARP * TILE_BYTES);
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
            kernel: match self.element {
                Element::F32 => "dense_backward_f32",
                Element::F16 => "dense_backward_f16",
                Element::Bf16 => "dense_backward_bf16",
            },
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
