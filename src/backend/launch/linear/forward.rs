//! The plan for `kernels/linear_forward.cu`.

use bytemuck::Zeroable;

use super::items::{BlockShape, Chunk, LinearItem};
use super::{LinearBatch, LinearPass, LinearResults};
use crate::backend::launch::kernel_params::kernel_params;
use crate::backend::launch::{
    DevicePtr, Launch, StatisticsSizes, TemperaturePlan, TemperatureStep,
};

kernel_params! {
    /// What the kernel is given.
    pub(super) struct LinearForwardParams in "linear_pass.cuh" for "linear_forward" {
        batch: LinearBatch,
        score_items: Option<DevicePtr>,
        gradient_items: Option<DevicePtr>,
        scores: Option<DevicePtr>,
        records: Option<DevicePtr>,
        targets: Option<DevicePtr>,
        softmaxes: Option<DevicePtr>,
        row_losses: Option<DevicePtr>,
        partials: Option<DevicePtr>,
        counters: Option<DevicePtr>,
        gradient: Option<DevicePtr>,
        gradient_stride: u64,
        hidden_gradient: Option<DevicePtr>,
        losses: Option<DevicePtr>,
        loss: Option<DevicePtr>,
        statistics: Option<DevicePtr>,
        temperature: Option<DevicePtr>,
        previous: Option<DevicePtr>,
        given: f64,
        step: TemperatureStep,
        sizes: StatisticsSizes,
        score_count: u32,
        gradient_count: u32,
        stage_bytes: u32,
        adapts: u32,
        times_temperature: u32,
        scores_only: u32,
    }
}

/// Device memory of a forward pass besides its inputs and results: what its launches write and read.
#[derive(Debug, Clone, Copy)]
pub(super) struct ForwardBuffers {
    pub items: Option<DevicePtr>,
    pub scores: Option<DevicePtr>,
    pub records: Option<DevicePtr>,
    pub targets: Option<DevicePtr>,
    pub softmaxes: Option<DevicePtr>,
    pub row_losses: Option<DevicePtr>,
    pub partials: Option<DevicePtr>,
    pub counters: Option<DevicePtr>,
    pub gradient: Option<DevicePtr>,
}

impl LinearPass {
    /// The launches of a forward pass: one, but for chunks of rows over the whole vocabulary. Where these
    /// must wait for the statistics of all, their scores are made twice.
    pub(super) fn forward_launches(
        &self,
        batch: &LinearBatch,
        buffers: &ForwardBuffers,
        temperature: TemperaturePlan,
        previous: Option<DevicePtr>,
        results: &LinearResults,
    ) -> Vec<Launch<LinearForwardParams>> {
        let base = LinearForwardParams {
            previous: previous.filter(|_| temperature.continues),
            given: temperature.given,
            step: temperature.step.unwrap_or(TemperatureStep::zeroed()),
            sizes: self.rows.statistics_sizes(),
            statistics: Some(results.statistics),
            temperature: Some(results.temperature),
            losses: (!self.rows.reduced).then_some(results.loss),
            loss: self.rows.reduced.then_some(results.loss),
            gradient_stride: self.gradient_stride(),
            hidden_gradient: results.hidden_gradient,
            adapts: temperature.adapts().into(),
            ..self.base(batch, buffers)
        };
        let chunks = &self.items.chunks;
        let launch = |params, chunk| self.launch(chunk, params);
        let Some((last, others)) = chunks.split_last() else {
            return Vec::new();
        };
        // Those of other chunks are still to come.
        let unfinished = LinearForwardParams {
            statistics: None,
            loss: None,
            batch: LinearBatch {
                ignored_count: 0,
                ..base.batch
            },
            ..base
        };
        let mut launches = Vec::new();
        if others.is_empty() || !temperature.adapts() {
            launches.extend(others.iter().map(|chunk| launch(unfinished, chunk)));
            launches.push(launch(base, last));
            return launches;
        }
        let scores_only = |params| LinearForwardParams {
            scores_only: 1,
            ..params
        };
        launches.extend(
            others
                .iter()
                .map(|chunk| launch(scores_only(unfinished), chunk)),
        );
        launches.push(launch(scores_only(base), last));
        let settled = |params| LinearForwardParams {
            previous: Some(results.temperature),
            statistics: None,
            adapts: 0,
            ..params
        };
        launches.extend(
            others
                .iter()
                .map(|chunk| launch(settled(unfinished), chunk)),
        );
        launches.push(launch(settled(base), last));
        launches
    }

    /// A launch that makes the scores of a chunk of items, and no more.
    pub(super) fn score_launch(
        &self,
        chunk: &Chunk,
        batch: &LinearBatch,
        buffers: &ForwardBuffers,
    ) -> Launch<LinearForwardParams> {
        let params = LinearForwardParams {
            scores_only: 1,
            ..self.base(batch, buffers)
        };
        self.launch(chunk, params)
    }

    fn base(&self, batch: &LinearBatch, buffers: &ForwardBuffers) -> LinearForwardParams {
        LinearForwardParams {
            batch: *batch,
            score_items: buffers.items,
            gradient_items: buffers.items,
            scores: buffers.scores,
            records: buffers.records,
            targets: buffers.targets,
            softmaxes: buffers.softmaxes,
            row_losses: buffers.row_losses,
            partials: buffers.partials,
            counters: buffers.counters,
            gradient: buffers.gradient,
            stage_bytes: self.shape.stage_bytes,
            times_temperature: self.rows.times_temperature.into(),
            ..LinearForwardParams::zeroed()
        }
    }

    fn launch(&self, chunk: &Chunk, params: LinearForwardParams) -> Launch<LinearForwardParams> {
        let at = |first: usize| {
            let bytes = first * size_of::<LinearItem>();
            params.score_items.map(|items| items.add(bytes as u64))
        };
        let gradients = if params.scores_only == 0 {
            chunk.gradients.len()
        } else {
            0
        };
        let work = chunk.scores.len().max(gradients).max(1);
        Launch {
            kernel: LinearForwardParams::kernel(self.element),
            grid: [work.min(u32::MAX as usize) as u32, 1, 1],
            block: [BlockShape::THREADS, 1, 1],
            shared_bytes: self.shape.shared_bytes,
            cooperative: true,
            params: LinearForwardParams {
                score_items: if chunk.scores.is_empty() {
                    None
                } else {
                    at(chunk.scores.start)
                },
                gradient_items: if gradients == 0 {
                    None
                } else {
                    at(chunk.gradients.start)
                },
                score_count: chunk.scores.len() as u32,
                gradient_count: gradients as u32,
                ..params
            },
        }
    }
}
