//! The plan for `kernels/linear_backward.cu`.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::{GradientScale, LinearRows, blocks_of_warps, check_width, gradient_stride};
use crate::Result;
use crate::backend::launch::{DeviceLimits, Element, Launch};

/// Mirrors `LinearBackwardParams` of `kernels/linear_backward.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LinearBackwardParams {
    rows: u64,
    idle: u64,
    unscaled: u64,
    unscaled_stride: u64,
    gradient: u64,
    scale: GradientScale,
    width: u32,
    row_count: u32,
    idle_count: u32,
    unused: u32,
}

const _: () = assert!(
    size_of::<LinearBackwardParams>() == 80 && offset_of!(LinearBackwardParams, width) == 64
);

/// The gradient of the hidden states, from what the forward pass left.
#[derive(Debug, Clone, Copy)]
pub struct LinearBackward<'a> {
    rows: &'a LinearRows,
    element: Element,
    width: u32,
    blocks: u32,
}

/// What a backward pass reads and writes, in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearBackwardBuffers {
    /// The gradient `[N, H]`.
    pub gradient: u64,
    /// The unscaled gradient, as the forward pass wrote it.
    pub unscaled: u64,
    /// As the forward pass wrote it.
    pub temperature: u64,
    /// What the loss's gradient is, as many f32 as the loss has.
    pub upstream: u64,
}

impl<'a> LinearBackward<'a> {
    /// Threads of a block, which takes no shared memory.
    pub const THREADS: u32 = 256;

    /// A pass over hidden states of `width` elements. `None` where there is no position.
    ///
    /// # Errors
    /// As [`LinearForward::new`](super::LinearForward::new).
    pub fn new(
        rows: &'a LinearRows,
        element: Element,
        width: usize,
        limits: &DeviceLimits,
    ) -> Result<Option<Self>> {
        let width = check_width(width)?;
        let blocks = blocks_of_warps(rows.rows.len() + rows.idle.len(), Self::THREADS, limits);
        Ok((blocks > 0).then_some(Self {
            rows,
            element,
            width,
            blocks,
        }))
    }

    /// The launch, over [`LinearRows::rows`] and [`LinearRows::idle`] where they are in device memory.
    #[must_use]
    pub fn launch(
        &self,
        rows: u64,
        idle: u64,
        buffers: &LinearBackwardBuffers,
    ) -> Launch<LinearBackwardParams> {
        Launch {
            kernel: match self.element {
                Element::F32 => "linear_backward_f32",
                Element::F16 => "linear_backward_f16",
                Element::Bf16 => "linear_backward_bf16",
            },
            grid: [self.blocks, 1, 1],
            block: [Self::THREADS, 1, 1],
            shared_bytes: 0,
            cooperative: false,
            params: LinearBackwardParams {
                rows,
                idle,
                unscaled: buffers.unscaled,
                unscaled_stride: gradient_stride(self.width),
                gradient: buffers.gradient,
                scale: GradientScale::new(self.rows, buffers.temperature, buffers.upstream),
                width: self.width,
                row_count: self.rows.rows.len() as u32,
                idle_count: self.rows.idle.len() as u32,
                unused: 0,
            },
        }
    }
}
