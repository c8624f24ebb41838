//! The launches of the gradients that a forward pass has prepared.

use bytemuck::Zeroable;

use super::head::HeadTiles;
use super::params::{
    GradientScale, LinearBackwardParams, LinearForwardParams, LinearGroup, LinearHeadGradientParams,
};
use super::{LinearForwarded, LinearPass, LinearUpstream, THREADS};
use crate::backend::launch::{BeamWeights, DevicePtr, Launch, Lifetime, Queue, WARP};
use crate::{Error, Result};

impl LinearPass {
    /// Issues the gradient of the hidden states `[N, H]`, which a pass with
    /// [`LinearGradients::Hidden`] or [`All`](LinearGradients::All) has prepared.
    ///
    /// # Safety
    /// `forwarded` must be of this pass and still kept, and the addresses of such buffers, as in
    /// [`forward`](Self::forward).
    ///
    /// # Errors
    /// What `queue` says.
    pub unsafe fn hidden_gradient<Q: Queue>(
        &self,
        queue: &mut Q,
        forwarded: &LinearForwarded,
        upstream: LinearUpstream,
        gradient: DevicePtr,
    ) -> Result<(), Q::Error> {
        let params = &forwarded.params;
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
        // SAFETY: as in `forward`.
        unsafe { queue.launch(&launch) }
    }

    /// Issues the gradients of the head `[V, H]` and of its bias `[V]`, each over zeros, where they are
    /// wanted.
    ///
    /// # Safety
    /// As [`hidden_gradient`](Self::hidden_gradient); hidden states, head and bias of the forward pass must
    /// be where they were.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a pass without [`LinearGradients::All`], and what `queue` says.
    pub unsafe fn head_gradient<Q: Queue>(
        &self,
        queue: &mut Q,
        forwarded: &LinearForwarded,
        upstream: LinearUpstream,
        [head, bias]: [Option<DevicePtr>; 2],
    ) -> Result<(), Q::Error> {
        let [groups, items, segments, starts, tokens] = forwarded.head_tables;
        let params = LinearHeadGradientParams {
            batch: forwarded.params.batch,
            scale: self.scale(upstream),
            scores: forwarded.params.scores,
            softmaxes: forwarded.params.softmaxes,
            segments,
            starts,
            tokens,
            head,
            bias,
            ..LinearHeadGradientParams::zeroed()
        };
        if let Some(tiles) = &self.head_tiles {
            let count = tiles.tokens.len() as u32;
            // SAFETY: as in `forward`.
            return unsafe { self.sum_head(queue, LinearHeadGradientParams { count, ..params }) };
        }
        let by_tokens = self.head_items.as_ref().ok_or_else(|| Error::Malformed {
            what: "pass",
            detail: "it was planned without the head's gradient".into(),
        })?;
        let of_scores = by_tokens.scores as usize * size_of::<f32>();
        let [scores] = queue.allocate(Lifetime::Scratch, [("scores", of_scores)])?;
        let [records, targets, nth_scores, partials] = self.allocate_scores(queue, by_tokens)?;
        let mut again = LinearForwardParams {
            score_items: items,
            scores,
            records,
            targets,
            nth_scores,
            partials,
            statistics: None,
            beam_weights: BeamWeights::zeroed(),
            scores_only: 1,
            ..forwarded.params
        };
        again.batch.groups = groups;
        for (index, chunk) in by_tokens.chunks.iter().enumerate() {
            let group = (index * size_of::<LinearGroup>()) as u64;
            let mut params = LinearHeadGradientParams {
                scores,
                count: by_tokens.groups[index].tokens,
                ..params
            };
            // The kernel takes the first group that it sees.
            params.batch.groups = groups.map(|groups| groups.offset(group));
            // SAFETY: as in `forward`.
            unsafe {
                self.issue(queue, chunk, again)?;
                self.sum_head(queue, params)?;
            }
        }
        Ok(())
    }

    /// Issues the sums of the head's gradient, as far as `params` say.
    ///
    /// # Safety
    /// As [`Queue::launch`].
    unsafe fn sum_head<Q: Queue>(
        &self,
        queue: &mut Q,
        params: LinearHeadGradientParams,
    ) -> Result<(), Q::Error> {
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
        unsafe { queue.launch(&launch) }
    }

    fn scale(&self, upstream: LinearUpstream) -> GradientScale {
        GradientScale {
            temperature: Some(upstream.temperature),
            upstream: Some(upstream.loss),
            upstream_by_position: (!self.rows.reduced).into(),
            times_temperature: self.rows.times_temperature.into(),
        }
    }
}
