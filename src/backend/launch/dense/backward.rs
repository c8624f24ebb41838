//! The launch of `kernels/dense_backward.cu`.

use super::{DenseBatch, DensePlan, DenseSaved, TILE_BYTES, chunks, threads};
use crate::backend::launch::{DeviceMatrix, DevicePtr, Launch, Upstream, WARP, kernel_params};

kernel_params! {
    /// The parameters of `kernels/dense_backward.cu`.
    pub struct DenseBackwardParams in "dense_backward.cu" for KERNEL = "dense_backward"(512, 2) {
        batch: DenseBatch, gradient: Option<DevicePtr>, gradient_stride: u64,
        softmaxes: Option<DevicePtr>, temperature: Option<DevicePtr>, upstream: Option<DevicePtr>,
        upstream_by_position: u32, times_temperature: u32,
    }
}

/// The launch that computes the gradient from what the forward pass saved.
#[derive(Debug, Clone, Copy)]
pub(super) struct DenseBackward<'a> {
    plan: &'a DensePlan,
    threads: u32,
    blocks: u32,
}

impl<'a> DenseBackward<'a> {
    /// Plans the launch. Returns `None` if the batch has no position.
    pub fn new(plan: &'a DensePlan) -> Option<Self> {
        let (kernel, threads) = (DenseBackwardParams::KERNEL, threads(&plan.rows));
        let warps = threads / WARP;
        let resident = (plan.limits).resident_blocks(&kernel, threads, warps * TILE_BYTES);
        let positions = plan.rows.totals.positions as u64;
        let work = (positions * chunks(plan.width, plan.element)).div_ceil(u64::from(warps));
        let blocks = work.min(u64::from(resident.max(1))) as u32;
        (blocks > 0).then_some(Self {
            plan,
            threads,
            blocks,
        })
    }

    pub fn launch(
        &self,
        saved: &DenseSaved,
        upstream: &Upstream,
        gradient: DeviceMatrix,
    ) -> Launch<DenseBackwardParams> {
        let totals = &self.plan.rows.totals;
        Launch {
            kernel: DenseBackwardParams::KERNEL.name(self.plan.element),
            grid: [self.blocks, 1, 1],
            block: [self.threads, 1, 1],
            shared_bytes: self.threads / WARP * TILE_BYTES,
            cooperative: false,
            params: DenseBackwardParams {
                batch: saved.batch,
                gradient: gradient.address,
                gradient_stride: gradient.row_stride,
                softmaxes: saved.softmaxes,
                temperature: Some(upstream.temperature),
                upstream: Some(upstream.loss),
                upstream_by_position: (!totals.reduced).into(),
                times_temperature: totals.times_temperature.into(),
            },
        }
    }
}
