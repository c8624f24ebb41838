//! The plan for `kernels/row_log_sum_exp.cu`.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::{DeviceLimits, Element, Launch, TokenSetsView, reduction_bytes};

/// Mirrors `RowLogSumExpParams` of `kernels/row_log_sum_exp.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct RowLogSumExpParams {
    logits: u64,
    rows: u64,
    out: u64,
    sets: TokenSetsView,
    row_stride: u64,
    row_count: u32,
    inverse_temperature: f32,
}

const _: () = assert!(
    size_of::<RowLogSumExpParams>() == 64
        && offset_of!(RowLogSumExpParams, sets) == 24
        && offset_of!(RowLogSumExpParams, row_stride) == 48
        && offset_of!(RowLogSumExpParams, inverse_temperature) == 60
);

/// The log-sum-exp of rows of logits, each over its own token set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowLogSumExp {
    /// What the logits are.
    pub element: Element,
    /// The address of the logits.
    pub logits: u64,
    /// How many elements lie between the beginnings of two positions.
    pub row_stride: u64,
    /// The address of the rows: see [`Row`](crate::Row).
    pub rows: u64,
    /// How many rows.
    pub row_count: u32,
    /// The token sets that the rows name.
    pub sets: TokenSetsView,
    /// What the logits are divided by.
    pub temperature: f32,
    /// The address of the result, one f32 a row.
    pub out: u64,
}

impl RowLogSumExp {
    const THREADS: u32 = 128;
    const SHARED_BYTES: u32 = reduction_bytes(8);

    /// Blocks walk over the rows, so that there need not be more than a device can hold. `None`
    /// where there is no row.
    #[must_use]
    pub fn launch(&self, limits: &DeviceLimits) -> Option<Launch<RowLogSumExpParams>> {
        let resident = limits
            .resident_blocks(Self::THREADS, Self::SHARED_BYTES)
            .max(1);
        let blocks = self.row_count.min(resident);
        (blocks > 0).then(|| Launch {
            kernel: match self.element {
                Element::F32 => "row_log_sum_exp_f32",
                Element::F16 => "row_log_sum_exp_f16",
                Element::Bf16 => "row_log_sum_exp_bf16",
            },
            grid: [blocks, 1, 1],
            block: [Self::THREADS, 1, 1],
            shared_bytes: Self::SHARED_BYTES,
            cooperative: false,
            params: RowLogSumExpParams {
                logits: self.logits,
                rows: self.rows,
                out: self.out,
                sets: self.sets,
                row_stride: self.row_stride,
                row_count: self.row_count,
                inverse_temperature: self.temperature.recip(),
            },
        })
    }
}
