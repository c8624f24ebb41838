//! The plans for `kernels/linear_backward.cu` and `kernels/linear_head_gradient.cu`.

use super::{GradientScale, LinearBatch, LinearPass};
use crate::backend::launch::kernel_params::kernel_params;
use crate::backend::launch::{DevicePtr, Launch, WARP};

kernel_params! {
    /// What the kernel of the hidden states' gradient is given.
    pub(super) struct LinearBackwardParams in "linear_backward.cu" for "linear_backward" {
        rows: Option<DevicePtr>,
        ignored: Option<DevicePtr>,
        unscaled: Option<DevicePtr>,
        unscaled_stride: u64,
        gradient: Option<DevicePtr>,
        scale: GradientScale,
        width: u32,
        row_count: u32,
        ignored_count: u32,
        unused: u32,
    }
}

kernel_params! {
    /// What the kernel of the head's gradient is given.
    pub(super) struct LinearHeadGradientParams in "linear_head_gradient.cu" for "linear_head_gradient" {
        batch: LinearBatch,
        scale: GradientScale,
        scores: Option<DevicePtr>,
        softmaxes: Option<DevicePtr>,
        segments: Option<DevicePtr>,
        starts: Option<DevicePtr>,
        tokens: Option<DevicePtr>,
        head: Option<DevicePtr>,
        bias: Option<DevicePtr>,
        count: u32,
        unused: u32,
    }
}

/// Threads of a block of either kernel.
const THREADS: u32 = 256;
/// `sizeof(HeadShared)` of `kernels/linear_head_gradient.cu`, and its tiles.
const HEAD_SHARED_BYTES: u32 = 39_424;
const TILE_TOKENS: u32 = 64;
const TILE_COLUMNS: u32 = 128;

impl LinearPass {
    /// The launch that scales the gradient of the hidden states: none where there is no position.
    pub(super) fn backward_launch(
        &self,
        batch: &LinearBatch,
        scale: GradientScale,
        unscaled: Option<DevicePtr>,
        gradient: DevicePtr,
    ) -> Option<Launch<LinearBackwardParams>> {
        let work = batch.row_count + batch.ignored_count;
        let resident = self.limits.resident_blocks(THREADS, 0).max(1);
        let launch = Launch {
            kernel: LinearBackwardParams::kernel(self.element),
            grid: [work.div_ceil(THREADS / WARP).min(resident), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
            cooperative: false,
            params: LinearBackwardParams {
                rows: batch.rows,
                ignored: batch.ignored,
                unscaled,
                unscaled_stride: self.gradient_stride(),
                gradient: Some(gradient),
                scale,
                width: self.width,
                row_count: batch.row_count,
                ignored_count: batch.ignored_count,
                unused: 0,
            },
        };
        (work > 0).then_some(launch)
    }

    /// The launch that sums the head's gradient, as far as `params` say: none where they name no token.
    pub(super) fn head_launch(
        &self,
        params: LinearHeadGradientParams,
    ) -> Option<Launch<LinearHeadGradientParams>> {
        let tiles = params
            .count
            .div_ceil(TILE_TOKENS)
            .saturating_mul(self.width.div_ceil(TILE_COLUMNS));
        let resident = self
            .limits
            .resident_blocks(THREADS, HEAD_SHARED_BYTES)
            .max(1);
        let launch = Launch {
            kernel: LinearHeadGradientParams::kernel(self.element),
            grid: [tiles.min(resident), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: HEAD_SHARED_BYTES,
            cooperative: false,
            params,
        };
        (tiles > 0).then_some(launch)
    }
}
