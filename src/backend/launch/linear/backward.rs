//! The launches of the backward passes, for the gradients of hidden states, head and bias.

use bytemuck::Zeroable;

use super::head::HeadTiles;
use super::params::{
    GradientScale, LinearBackwardParams, LinearForwardParams, LinearGroup, LinearHeadGradientParams,
};
use super::{LinearPlan, LinearSaved, THREADS};
use crate::backend::launch::{
    BeamWeights, DevicePtr, Launch, Lifetime, StatisticsSizes, Stream, Upstream, WARP,
};
use crate::{Error, Result};

impl LinearPlan {
    /// Issues the backward pass that writes the gradient of the hidden states `[N, H]`. The plan must have been made with
    /// [`LinearGradients::Hidden`](super::LinearGradients::Hidden), [`All`](super::LinearGradients::All) or
    /// [`AddedRows`](super::LinearGradients::AddedRows).
    ///
    /// # Safety
    /// `saved` must be of this plan, and its memory unchanged. The addresses must be of buffers as in
    /// [`issue_forward`](Self::issue_forward).
    ///
    /// # Errors
    /// Those of `stream`.
    pub unsafe fn issue_hidden_gradient<S: Stream>(
        &self,
        stream: &mut S,
        saved: &LinearSaved,
        upstream: &Upstream,
        gradient: DevicePtr,
    ) -> Result<(), S::Error> {
        let params = &saved.params;
        let work = params.batch.row_count + params.batch.ignored_count;
        if work == 0 {
            return Ok(());
        }
        let kernel = LinearBackwardParams::KERNEL;
        let resident = self.limits.resident_blocks(&kernel, THREADS, 0).max(1);
        let launch = Launch {
            kernel: kernel.name(self.element),
            grid: [work.div_ceil(THREADS / WARP).min(resident), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
            cooperative: false,
            params: LinearBackwardParams {
                rows: params.batch.rows,
                ignored: params.batch.ignored,
                unscaled: params.gradient,
                unscaled_stride: params.gradient_stride,
                gradient: Some(gradient),
                scale: self.scale(upstream),
                width: self.width,
                row_count: params.batch.row_count,
                ignored_count: params.batch.ignored_count,
                unused: 0,
            },
        };
        // SAFETY: as in `issue_forward`.
        unsafe { stream.launch(&launch) }
    }

    /// Issues the backward pass that writes the gradients of the head `[V, H]`, or of its added rows `[V′, H]`, and of its bias
    /// `[V]`; `None` for one that is not wanted. Both must hold zeros, because only the tokens of the batch are written.
    ///
    /// # Safety
    /// Those of [`issue_hidden_gradient`](Self::issue_hidden_gradient). Hidden states, head and bias of the forward pass must be
    /// unchanged.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a plan without [`LinearGradients::All`](super::LinearGradients::All) or
    /// [`AddedRows`](super::LinearGradients::AddedRows), and those of `stream`.
    pub unsafe fn issue_head_gradient<S: Stream>(
        &self,
        stream: &mut S,
        saved: &LinearSaved,
        upstream: &Upstream,
        [head, bias]: [Option<DevicePtr>; 2],
    ) -> Result<(), S::Error> {
        let [groups, items, segments, starts, tokens] = saved.head_tables;
        let params = LinearHeadGradientParams {
            batch: saved.params.batch,
            scale: self.scale(upstream),
            scores: saved.params.scores,
            softmaxes: saved.params.softmaxes,
            segments,
            starts,
            tokens,
            head,
            bias,
            ..LinearHeadGradientParams::zeroed()
        };
        if let Some(tiles) = &self.head_tiles {
            let count = tiles.tokens.len() as u32;
            // SAFETY: as in `issue_forward`.
            return unsafe {
                self.issue_head_sums(stream, LinearHeadGradientParams { count, ..params })
            };
        }
        let by_tokens = self.head_items.as_ref().ok_or_else(|| Error::Malformed {
            what: "launch plan",
            detail: "it was made without the gradient of the head".into(),
        })?;
        let score_bytes = by_tokens.scores as usize * size_of::<f32>();
        let [scores] = stream.allocate(Lifetime::Scratch, [("scores", score_bytes)])?;
        let [records, targets, nth_scores, partials] =
            self.allocate_scores(stream, by_tokens, false)?;
        let mut again = LinearForwardParams {
            score_items: items,
            scores,
            records,
            targets,
            nth_scores,
            partials,
            statistics: None,
            sizes: StatisticsSizes::zeroed(),
            beam_weights: BeamWeights::zeroed(),
            scores_only: 1,
            ..saved.params
        };
        again.batch.groups = groups;
        for (index, chunk) in by_tokens.chunks.iter().enumerate() {
            let group = (index * size_of::<LinearGroup>()) as u64;
            let mut params = LinearHeadGradientParams {
                scores,
                count: by_tokens.groups[index].tokens,
                ..params
            };
            // Without segments the kernel reads group 0, so the table begins at the group of this chunk.
            params.batch.groups = groups.map(|groups| groups.offset(group));
            // SAFETY: as in `issue_forward`.
            unsafe {
                self.issue_chunk(stream, chunk, again)?;
                self.issue_head_sums(stream, params)?;
            }
        }
        Ok(())
    }

    /// Issues the launch that computes the gradient of the head for the tokens that `params` name.
    ///
    /// # Safety
    /// That of [`Stream::launch`].
    unsafe fn issue_head_sums<S: Stream>(
        &self,
        stream: &mut S,
        params: LinearHeadGradientParams,
    ) -> Result<(), S::Error> {
        let tiles = params.count.div_ceil(HeadTiles::TOKENS as u32);
        let tiles = tiles.saturating_mul(self.width.div_ceil(HeadTiles::COLUMNS));
        if tiles == 0 {
            return Ok(());
        }
        let (kernel, shared_bytes) = (LinearHeadGradientParams::KERNEL, HeadTiles::SHARED_BYTES);
        let resident = self.limits.resident_blocks(&kernel, THREADS, shared_bytes);
        let launch = Launch {
            kernel: kernel.name(self.element),
            grid: [tiles.min(resident.max(1)), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes,
            cooperative: false,
            params,
        };
        // SAFETY: the caller's promise.
        unsafe { stream.launch(&launch) }
    }

    fn scale(&self, upstream: &Upstream) -> GradientScale {
        GradientScale {
            temperature: Some(upstream.temperature),
            upstream: Some(upstream.loss),
            upstream_by_position: (!self.rows.totals.reduced).into(),
            times_temperature: self.rows.totals.times_temperature.into(),
        }
    }
}
