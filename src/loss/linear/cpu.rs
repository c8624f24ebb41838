//! The loss over hidden states × head on the CPU, over the slices of the backend.

use super::CpuForward;
use crate::Result;
use crate::backend::batch::Batch;
use crate::backend::cpu::linear::{
    self, Hidden, SavedGradient, Wanted, WholeVocabulary, hidden_gradient, score, softmax,
    whole_vocabulary_head_gradient, write_hidden_gradient,
};
use crate::loss::call::{LossCall, Upstream};
use crate::loss::tensor::Scalar;

/// What a forward pass saves for the backward pass.
#[derive(Debug)]
pub(in crate::loss) struct SavedForward<T: Scalar> {
    pub forward: CpuForward,
    gradient: SavedGradient<T::Real>,
}

/// Computes statistics, temperature and softmaxes, and prepares the gradients that are wanted.
pub(in crate::loss) fn forward<T: Scalar>(
    hidden: Hidden<T>,
    head: &linear::Head<T>,
    LossCall { batch, source, .. }: &LossCall,
    wanted: Wanted,
) -> Result<SavedForward<T>> {
    let (statistics, temperature, softmaxes);
    match WholeVocabulary::new(hidden, head, batch) {
        Some(rows) => {
            statistics = rows.statistics()?;
            temperature = source.resolve(&statistics)?;
            softmaxes = rows.softmax(temperature.0, wanted);
        }
        None => {
            let scores = score(hidden, head, batch)?;
            statistics = scores.statistics;
            temperature = source.resolve(&statistics)?;
            softmaxes = softmax(scores, batch, temperature.0, wanted);
        }
    }
    let (softmaxes, gradient) = softmaxes;
    Ok(SavedForward {
        forward: CpuForward::new(batch, softmaxes, statistics, temperature),
        gradient,
    })
}

impl<T: Scalar> SavedForward<T> {
    /// Returns the gradient of the hidden states `[N, H]`, of a pass that was made for it.
    pub fn hidden_gradient(
        &self,
        head: &linear::Head<T>,
        batch: &Batch,
        upstream: &Upstream,
    ) -> Result<Vec<T>> {
        self.gradient.check_frozen(head, batch)?;
        let factor = |index| upstream.factor(batch, &self.forward, index);
        let length = batch.positions * head.width;
        Ok(hidden_gradient(&self.gradient, head, batch, factor, length))
    }

    /// Writes the same gradient over whatever `gradient` holds.
    pub fn write_hidden_gradient(
        &self,
        head: &linear::Head<T>,
        batch: &Batch,
        upstream: &Upstream,
        gradient: &mut [T],
    ) -> Result<()> {
        self.gradient.check_frozen(head, batch)?;
        let factor = |index| upstream.factor(batch, &self.forward, index);
        write_hidden_gradient(&self.gradient, head, batch, factor, gradient);
        Ok(())
    }

    /// Adds the gradients of the head `[V, H]` and of its bias `[V]` to memory that holds zeros, of a pass that was made for
    /// them. An empty bias is left alone.
    pub fn add_head_gradient(
        &self,
        hidden: Hidden<T>,
        head: &linear::Head<T>,
        batch: &Batch,
        upstream: &Upstream,
        to: linear::HeadGradient<T>,
    ) {
        let factor = |index| upstream.factor(batch, &self.forward, index);
        match &self.gradient {
            SavedGradient::Logits(dlogits) => {
                linear::head_gradient(dlogits, hidden, batch, factor, to);
            }
            SavedGradient::Hidden(_) => whole_vocabulary_head_gradient(
                &self.forward.softmaxes,
                hidden,
                head,
                batch,
                self.forward.temperature,
                factor,
                to,
            ),
        }
    }
}
