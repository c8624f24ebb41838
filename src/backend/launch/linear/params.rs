//! The structs that the kernels over hidden states mirror. The kernel sources document the fields.

use crate::backend::launch::{
    BeamWeights, DevicePtr, StatisticsSizes, TemperatureStep, kernel_params,
};

kernel_params! {
    /// A row that has a loss, or whose scores enter the statistics.
    pub(super) struct LinearRow in "linear.cuh" {
        position: u32, group: u32, rank: u32, loss_weight: f32, in_statistics: u32, maximum: u32, unused: [u32; 2],
    }
}

kernel_params! {
    /// The rows of one token set, or of a part of the whole vocabulary.
    pub(super) struct LinearGroup in "linear.cuh" {
        first_token: u32, tokens: u32, first_row: u32, rows: u32, scores: u64, records: u64,
        first_rank: u32, unused: [u32; 3],
    }
}

kernel_params! {
    /// An item of work, which one block processes.
    pub(super) struct LinearItem in "linear_phase.cuh" {
        group: u32, first_row: u32, rows: u32, first: u32, count: u32, inner_first: u32,
        inner_count: u32, slice: u32, slices: u32, partials: u32, counter: u32, unused: u32,
    }
}

kernel_params! {
    /// The tokens of a set that are in a tile of tokens.
    pub(super) struct LinearSegment in "linear_head_gradient.cu" {
        group: u32, first: u32, count: u32, rows_before: u32,
    }
}

kernel_params! {
    /// The hidden states, the head and the rows of a batch.
    pub(super) struct LinearBatch in "linear.cuh" {
        hidden: Option<DevicePtr>, hidden_stride: u64, head: Option<DevicePtr>, head_stride: u64,
        base: Option<DevicePtr>, base_stride: u64, bias: Option<DevicePtr>, rows: Option<DevicePtr>,
        groups: Option<DevicePtr>, tokens: Option<DevicePtr>, ignored: Option<DevicePtr>, row_count: u32,
        ignored_count: u32, width: u32, base_rows: u32,
    }
}

kernel_params! {
    /// The factor of the unscaled gradient of a row.
    pub(super) struct GradientScale in "linear.cuh" {
        temperature: Option<DevicePtr>, upstream: Option<DevicePtr>, upstream_by_position: u32,
        times_temperature: u32,
    }
}

kernel_params! {
    /// The parameters of `kernels/linear_forward.cu`.
    pub(super) struct LinearForwardParams in "linear_phase.cuh" for KERNEL = "linear_forward"(256, 2) {
        batch: LinearBatch, score_items: Option<DevicePtr>, gradient_items: Option<DevicePtr>,
        scores: Option<DevicePtr>, records: Option<DevicePtr>, targets: Option<DevicePtr>, nth_scores: Option<DevicePtr>,
        softmaxes: Option<DevicePtr>, row_losses: Option<DevicePtr>, partials: Option<DevicePtr>,
        counters: Option<DevicePtr>, gradient: Option<DevicePtr>, gradient_stride: u64,
        hidden_gradient: Option<DevicePtr>, losses: Option<DevicePtr>, loss: Option<DevicePtr>,
        statistics: Option<DevicePtr>, temperature: Option<DevicePtr>, previous: Option<DevicePtr>,
        given: f64, step: TemperatureStep, sizes: StatisticsSizes, beam_weights: BeamWeights,
        first_row: u32, rows: u32, score_count: u32,
        gradient_count: u32, stage_bytes: u32, adapts: u32, times_temperature: u32,
        scores_only: u32,
    }
}

kernel_params! {
    /// The parameters of `kernels/linear_backward.cu`.
    pub(super) struct LinearBackwardParams in "linear_backward.cu" for KERNEL = "linear_backward"(256, 4) {
        rows: Option<DevicePtr>, ignored: Option<DevicePtr>, unscaled: Option<DevicePtr>,
        unscaled_stride: u64, gradient: Option<DevicePtr>, scale: GradientScale, width: u32,
        row_count: u32, ignored_count: u32, unused: u32,
    }
}

kernel_params! {
    /// The parameters of `kernels/linear_head_gradient.cu`.
    pub(super) struct LinearHeadGradientParams in "linear_head_gradient.cu"
    for KERNEL = "linear_head_gradient"(256, 2) {
        batch: LinearBatch, scale: GradientScale, scores: Option<DevicePtr>,
        softmaxes: Option<DevicePtr>, segments: Option<DevicePtr>, starts: Option<DevicePtr>,
        tokens: Option<DevicePtr>, head: Option<DevicePtr>, bias: Option<DevicePtr>, count: u32,
        unused: u32,
    }
}
