//! The launches of a forward pass.

use bytemuck::{Zeroable, cast_slice};

use super::head::HeadTiles;
use super::items::{Chunk, Items};
use super::params::{LinearBatch, LinearForwardParams, LinearItem};
use super::{LinearPlan, LinearSaved, LinearTensors, THREADS};
use crate::backend::launch::{
    BeamWeights, DevicePtr, ForwardResults, Launch, Lifetime, Stream, TemperaturePlan,
    TemperatureStep, WARP,
};
use crate::{Error, Result};

/// Mirrors `ScoreRecord` of `kernels/linear_phase.cuh`.
const RECORD_BYTES: usize = 16;
/// The size of a packet, in which `Items::partials` is counted.
const PACKET_BYTES: usize = 16;

impl LinearPlan {
    /// Issues the forward pass, which computes statistics, temperature and loss, and saves what the gradients are computed
    /// from. Under [`LinearGradients::Direct`](super::LinearGradients::Direct) it writes the gradient of the hidden states `[N,
    /// H]` to `hidden_gradient`. All tables are uploaded at once before the first launch, so that no copy waits for a launch.
    ///
    /// # Safety
    /// The rows must name sets of `tensors.sets`, ranks in these sets, and tokens of the head. The addresses must be of buffers of
    /// the documented sizes on the device of `stream`. Nothing else may read, write or free them until the launches are done.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a plan with the gradient of other rows of the head than those after `tensors.base`, and those of
    /// `stream`.
    pub unsafe fn issue_forward<S: Stream>(
        &self,
        stream: &mut S,
        tensors: &LinearTensors,
        temperature: TemperaturePlan,
        hidden_gradient: Option<DevicePtr>,
        results: &ForwardResults,
    ) -> Result<LinearSaved, S::Error> {
        let base_rows = tensors.base.map_or(0, |base| base.rows);
        if let Some(first_trained) = self.first_trained.filter(|&first| first != base_rows) {
            return Err(Error::Malformed {
                what: "launch plan",
                detail: format!(
                    "it was made for the gradient of the head from row {first_trained} on, but {base_rows} rows are frozen"
                ),
            })?;
        }
        let (rows, totals, items) = (&self.rows, &self.rows.totals, &self.items);
        let (no_tiles, no_items) = (HeadTiles::default(), Items::default());
        let tiles = self.head_tiles.as_ref().unwrap_or(&no_tiles);
        let head_items = self.head_items.as_ref().unwrap_or(&no_items);
        let counters = vec![0; items.counters.max(head_items.counters) as usize];
        // Tables with 64-bit fields come first, because each table begins where the previous one ends.
        let [
            groups,
            head_groups,
            row_table,
            item_table,
            head_item_table,
            tables @ ..,
        ] = stream.upload([
            ("groups", cast_slice(&items.groups)),
            ("head groups", cast_slice(&head_items.groups)),
            ("rows", cast_slice(&rows.rows)),
            ("items", cast_slice(&items.items)),
            ("head items", cast_slice(&head_items.items)),
            ("segments", cast_slice(&tiles.segments)),
            ("segment starts", &tiles.starts),
            ("head tokens", &tiles.tokens),
            ("ignored", &rows.ignored),
            ("counters", &counters),
        ])?;
        let [segments, starts, head_tokens, ignored, counters] = tables;
        let only = |wanted: bool, bytes: usize| if wanted { bytes } else { 0 };
        let count = rows.rows.len();
        let score_bytes = items.scores as usize * size_of::<f32>();
        let softmax_bytes = count * 3 * size_of::<f32>();
        let unscaled_bytes = count * self.gradient_stride() as usize * size_of::<f32>();
        let keeps_softmaxes = self.head_tiles.is_some() || self.head_items.is_some();
        let [gradient, kept_scores, kept_softmaxes] = stream.allocate(
            Lifetime::Kept,
            [
                ("unscaled", only(self.unscaled, unscaled_bytes)),
                ("kept scores", only(self.head_tiles.is_some(), score_bytes)),
                ("kept softmaxes", only(keeps_softmaxes, softmax_bytes)),
            ],
        )?;
        let [scores, softmaxes, row_losses] = stream.allocate(
            Lifetime::Scratch,
            [
                ("scores", only(self.head_tiles.is_none(), score_bytes)),
                ("softmaxes", only(!keeps_softmaxes, softmax_bytes)),
                ("row losses", count * size_of::<f64>()),
            ],
        )?;
        let sizes = totals.statistics_sizes();
        let has_statistics = sizes.rows > 0.0;
        let [records, targets, nth_scores, partials] =
            self.allocate_scores(stream, items, has_statistics)?;
        let params = LinearForwardParams {
            batch: LinearBatch {
                hidden: tensors.hidden.address,
                hidden_stride: tensors.hidden.row_stride,
                head: tensors.head.address,
                head_stride: tensors.head.row_stride,
                base: tensors.base.and_then(|base| base.matrix.address),
                base_stride: tensors.base.map_or(0, |base| base.matrix.row_stride),
                bias: tensors.bias,
                rows: row_table,
                groups,
                tokens: tensors.sets.tokens,
                ignored,
                row_count: count as u32,
                ignored_count: rows.ignored.len() as u32,
                width: self.width,
                base_rows,
            },
            score_items: item_table,
            gradient_items: item_table,
            scores: scores.or(kept_scores),
            records,
            targets,
            nth_scores,
            softmaxes: softmaxes.or(kept_softmaxes),
            row_losses,
            partials,
            counters,
            gradient,
            gradient_stride: self.gradient_stride(),
            hidden_gradient,
            losses: (!totals.reduced).then_some(results.loss),
            loss: totals.reduced.then_some(results.loss),
            statistics: Some(results.statistics),
            temperature: Some(results.temperature),
            previous: tensors.previous.filter(|_| temperature.continues),
            given: temperature.given,
            step: temperature.step.unwrap_or(TemperatureStep::zeroed()),
            sizes,
            beam_weights: totals.beam_weights.with_sum_after(Some(results.statistics)),
            stage_bytes: self.shape.stage_bytes,
            adapts: temperature.adapts().into(),
            times_temperature: totals.times_temperature.into(),
            ..LinearForwardParams::zeroed()
        };
        for (chunk, params) in self.forward_launches(params) {
            // SAFETY: the parameters are those of the kernel, and the plan's own buffers have the sizes that it needs.
            // The caller promises the same of its buffers.
            unsafe { self.issue_chunk(stream, chunk, params) }?;
        }
        Ok(LinearSaved {
            params,
            head_tables: [head_groups, head_item_table, segments, starts, head_tokens],
        })
    }

    /// Returns the launches of a forward pass: one for each chunk. If the loss depends on the statistics or weights of all rows
    /// and there are several chunks, each chunk is launched twice: first for the scores only, and then, with the temperature
    /// and weights known, for scores, loss and gradient.
    fn forward_launches(
        &self,
        params: LinearForwardParams,
    ) -> impl Iterator<Item = (&Chunk, LinearForwardParams)> {
        let chunks = &self.items.chunks;
        let waits = params.adapts != 0 || params.beam_weights.is_enabled();
        let twice = waits && chunks.len() > 1;
        let first_time = LinearForwardParams {
            scores_only: twice.into(),
            ..params
        };
        let second_time = LinearForwardParams {
            previous: params.temperature,
            statistics: None,
            adapts: 0,
            // The first launches have already multiplied the loss weights by BEAR's.
            beam_weights: BeamWeights::zeroed(),
            ..params
        };
        let of_chunks = move |params: LinearForwardParams| {
            let last = chunks.len() - 1;
            (chunks.iter().enumerate()).map(move |(index, chunk)| match index == last {
                true => (chunk, params),
                false => (chunk, without_totals(params)),
            })
        };
        let again = twice.then(|| of_chunks(second_time));
        of_chunks(first_time).chain(again.into_iter().flatten())
    }

    /// Issues a cooperative launch over a chunk, with a block for each item and for every eight ignored positions whose loss
    /// or gradient it writes, or as many as are resident.
    ///
    /// # Safety
    /// That of [`Stream::launch`].
    pub(super) unsafe fn issue_chunk<S: Stream>(
        &self,
        stream: &mut S,
        chunk: &Chunk,
        params: LinearForwardParams,
    ) -> Result<(), S::Error> {
        let part = |items: Option<DevicePtr>, first: usize, count: usize| {
            items
                .filter(|_| count > 0)
                .map(|items| items.offset((first * size_of::<LinearItem>()) as u64))
        };
        let gradients = if params.scores_only == 0 {
            chunk.gradients.len()
        } else {
            0
        };
        let writes = params.losses.is_some() || params.hidden_gradient.is_some();
        let ignored = if writes && params.scores_only == 0 {
            params.batch.ignored_count.div_ceil(THREADS / WARP)
        } else {
            0
        };
        let items = chunk.scores.len().max(gradients) as u32;
        let mut launch = Launch {
            kernel: LinearForwardParams::KERNEL.name(self.element),
            grid: [items.max(ignored).max(1), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: self.shape.shared_bytes,
            cooperative: true,
            params: LinearForwardParams {
                score_items: part(params.score_items, chunk.scores.start, chunk.scores.len()),
                gradient_items: part(params.gradient_items, chunk.gradients.start, gradients),
                score_count: chunk.scores.len() as u32,
                gradient_count: gradients as u32,
                first_row: chunk.rows[0],
                rows: chunk.rows[1],
                ..params
            },
        };
        let resident = stream
            .resident_blocks(&launch)?
            .unwrap_or(self.shape.blocks);
        launch.grid[0] = launch.grid[0].min(resident.max(1));
        // SAFETY: the caller's promise.
        unsafe { stream.launch(&launch) }
    }

    /// Allocates the scratch of launches over these items: records, which only statistics read, target scores, B-th largest scores
    /// and partial sums.
    pub(super) fn allocate_scores<S: Stream>(
        &self,
        stream: &mut S,
        items: &Items,
        has_statistics: bool,
    ) -> Result<[Option<DevicePtr>; 4], S::Error> {
        let row_bytes = self.rows.rows.len() * size_of::<f32>();
        let record_bytes = items.records as usize * RECORD_BYTES;
        let has_beam_weights = self.rows.totals.beam_weights.is_enabled();
        stream.allocate(
            Lifetime::Scratch,
            [
                ("records", if has_statistics { record_bytes } else { 0 }),
                ("targets", row_bytes),
                ("nth scores", if has_beam_weights { row_bytes } else { 0 }),
                ("partials", items.partials as usize * PACKET_BYTES),
            ],
        )
    }
}

/// Returns the parameters of a launch that is not the last of a pass: the last one writes the statistics, the sum of the losses
/// and the ignored positions.
fn without_totals(mut params: LinearForwardParams) -> LinearForwardParams {
    (params.statistics, params.loss) = (None, None);
    params.batch.ignored_count = 0;
    params
}
