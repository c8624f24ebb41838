//! The plan for `kernels/linear_gather.cu`.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::{LinearInputs, LinearRows, blocks_of_warps, check_width};
use crate::Result;
use crate::backend::launch::{DeviceLimits, Element, Launch};

/// Mirrors `GatherSide` of `kernels/linear_gather.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct GatherSide {
    source: u64,
    stride: u64,
    result: u64,
    rows: u64,
}

/// Mirrors `LinearGatherParams` of `kernels/linear_gather.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LinearGatherParams {
    hidden: GatherSide,
    head: GatherSide,
    indices: u64,
    width: u64,
}

const _: () =
    assert!(size_of::<LinearGatherParams>() == 80 && offset_of!(LinearGatherParams, indices) == 64);

/// The gathering of what the matrix products of a batch read.
#[derive(Debug, Clone, Copy)]
pub struct LinearGather<'a> {
    rows: &'a LinearRows,
    element: Element,
    width: u32,
    blocks: u32,
}

impl<'a> LinearGather<'a> {
    /// Threads of a block, which takes no shared memory.
    pub const THREADS: u32 = 256;

    /// For rows of `width` elements. `None` where there is no group.
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
        let blocks = blocks_of_warps(rows.gathered.len(), Self::THREADS, limits);
        Ok((blocks > 0).then_some(Self {
            rows,
            element,
            width,
            blocks,
        }))
    }

    /// The launch: hidden states `[grouped, H]` to the one address, head rows
    /// `[gathered_head_rows, H]` to the other.
    #[must_use]
    pub fn launch(
        &self,
        inputs: &LinearInputs,
        hidden: u64,
        head: u64,
    ) -> Launch<LinearGatherParams> {
        Launch {
            kernel: match self.element {
                Element::F32 => "linear_gather_f32",
                Element::F16 => "linear_gather_f16",
                Element::Bf16 => "linear_gather_bf16",
            },
            grid: [self.blocks, 1, 1],
            block: [Self::THREADS, 1, 1],
            shared_bytes: 0,
            cooperative: false,
            params: LinearGatherParams {
                hidden: GatherSide {
                    source: inputs.hidden,
                    stride: inputs.hidden_stride,
                    result: hidden,
                    rows: self.rows.grouped() as u64,
                },
                head: GatherSide {
                    source: inputs.head,
                    stride: inputs.head_stride,
                    result: head,
                    rows: self.rows.gathered_head_rows() as u64,
                },
                indices: inputs.gathered,
                width: self.width.into(),
            },
        }
    }
}
