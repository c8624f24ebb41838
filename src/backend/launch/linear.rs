//! Plans for `kernels/linear_*.cu`: the loss over hidden states and a head.
//!
//! A forward pass gathers what its groups read, makes their scores by [`Product`]s, runs one kernel
//! over all rows, and makes the groups' gradients by products again. A backward pass is one launch;
//! the head's gradient, where it is wanted, two more with the groups' products between them.
//!
//! Rows over the whole vocabulary are taken in chunks that share the room for their scores: [`LinearChunks`].
//!
//! [`LinearPass`] has all of it in order, for whatever is a [`Queue`](super::Queue): a stream of candle's
//! or of cust's, or the emulator.

mod backward;
mod chunks;
mod forward;
mod gather;
mod head_gradient;
mod parts;
mod pass;
mod product;
mod room;
mod rows;
mod shares;

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

pub use backward::{LinearBackward, LinearBackwardBuffers, LinearBackwardParams};
use chunks::{LinearChunks, LinearStep};
pub use forward::{LinearForward, LinearForwardBuffers, LinearForwardParams};
pub use gather::{GatherSide, LinearGather, LinearGatherParams};
use head_gradient::LinearHeadBuffers;
pub use head_gradient::LinearHeadGradient;
pub use pass::{LinearForwarded, LinearPass, LinearResults, LinearTensors, LinearUpstream};
pub use product::Product;
pub use rows::{LinearRow, LinearRows};
pub use shares::LinearShares;

use super::{DeviceLimits, Element, TokenSetsView, WARP};
use crate::{Error, Result};

/// Elements of a 16-byte packet.
fn packet(element: Element) -> u32 {
    16 / element.bytes()
}

/// How far apart the unscaled gradients of rows are, in f32: whole packets of every type.
fn gradient_stride(width: u32) -> u64 {
    u64::from(width).next_multiple_of(8)
}

/// Blocks of a launch whose warps take a piece of work each, as many as are resident at once.
fn blocks_of_warps(work: usize, threads: u32, limits: &DeviceLimits) -> u32 {
    let resident = limits.resident_blocks(threads, 0).max(1);
    work.div_ceil((threads / WARP) as usize)
        .min(resident as usize) as u32
}

/// The kernels count the elements of a row in 32 bits, packets in fewer.
fn check_width(width: usize) -> Result<u32> {
    let limit = 1 << 24;
    match u32::try_from(width) {
        Ok(0) => Err(Error::Unsupported {
            what: "hidden states",
            expected: "a width of at least 1".into(),
            actual: "a width of 0".into(),
        }),
        Ok(width) if width <= limit => Ok(width),
        _ => Err(Error::TooLarge {
            what: "width of the hidden states",
            size: width as u64,
            limit: u64::from(limit),
        }),
    }
}

/// Where the inputs of a batch are in device memory. Strides are elements between the beginnings of
/// two rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearInputs {
    /// The hidden states `[N, H]`.
    pub hidden: u64,
    /// Of the hidden states.
    pub hidden_stride: u64,
    /// The head `[V, H]`.
    pub head: u64,
    /// Of the head.
    pub head_stride: u64,
    /// The bias `[V]`, or 0 for none.
    pub bias: u64,
    /// [`LinearRows::rows`].
    pub rows: u64,
    /// [`LinearRows::idle`].
    pub idle: u64,
    /// [`LinearRows::gathered`].
    pub gathered: u64,
    /// The token sets that the rows name.
    pub sets: TokenSetsView,
}

/// Mirrors `LinearBatch` of `kernels/linear.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct LinearBatch {
    hidden: u64,
    hidden_stride: u64,
    head: u64,
    head_stride: u64,
    bias: u64,
    rows: u64,
    idle: u64,
    sets: TokenSetsView,
    width: u32,
    grouped: u32,
    row_count: u32,
    idle_count: u32,
}

const _: () = assert!(
    size_of::<LinearBatch>() == 96
        && offset_of!(LinearBatch, sets) == 56
        && offset_of!(LinearBatch, width) == 80
);

impl LinearBatch {
    fn new(rows: &LinearRows, width: u32, inputs: &LinearInputs) -> Self {
        Self {
            hidden: inputs.hidden,
            hidden_stride: inputs.hidden_stride,
            head: inputs.head,
            head_stride: inputs.head_stride,
            bias: inputs.bias,
            rows: inputs.rows,
            idle: inputs.idle,
            sets: inputs.sets,
            width,
            grouped: rows.grouped() as u32,
            row_count: rows.rows.len() as u32,
            idle_count: rows.idle.len() as u32,
        }
    }
}

/// Mirrors `GradientScale` of `kernels/linear.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct GradientScale {
    temperature: u64,
    upstream: u64,
    upstream_by_position: u32,
    times_temperature: u32,
}

const _: () = assert!(
    size_of::<GradientScale>() == 24 && offset_of!(GradientScale, upstream_by_position) == 16
);

impl GradientScale {
    fn new(rows: &LinearRows, temperature: u64, upstream: u64) -> Self {
        Self {
            temperature,
            upstream,
            upstream_by_position: (!rows.reduced).into(),
            times_temperature: rows.times_temperature.into(),
        }
    }
}
