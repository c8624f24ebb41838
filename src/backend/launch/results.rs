//! What forward passes over logits and over hidden states have in common: what a batch amounts to, and where results go.

use super::{BeamWeights, DevicePtr, StatisticsSizes, TemperaturePlan};
use crate::backend::batch::Batch;
use crate::{Result, Statistics, Temperature};

/// The properties of a batch that plans depend on besides its rows.
#[derive(Debug, Clone)]
pub struct BatchTotals {
    pub(super) positions: usize,
    /// Whether the loss is one number, or one for each position.
    pub(super) reduced: bool,
    pub(super) times_temperature: bool,
    /// The statistics as far as they do not depend on logits.
    pub(super) statistics: Statistics,
    pub(super) beam_weights: BeamWeights,
}

impl BatchTotals {
    pub(super) fn new(batch: &Batch) -> Self {
        Self {
            positions: batch.positions,
            reduced: batch.reduced,
            times_temperature: batch.times_temperature,
            statistics: batch.statistics_sizes(),
            beam_weights: BeamWeights::of(batch),
        }
    }

    /// Returns N, the flattened positions of the batch.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Returns how many numbers the loss has: one, or one for each position.
    #[must_use]
    pub fn losses(&self) -> usize {
        if self.reduced { 1 } else { self.positions }
    }

    /// Returns where the temperature of a pass comes from that takes a step of `temperature` with the statistics of this
    /// batch.
    ///
    /// # Errors
    /// Those of [`Temperature::step`]: all that it refuses can be told from the sizes of the sets.
    pub fn next(&self, temperature: &Temperature) -> Result<TemperaturePlan> {
        TemperaturePlan::next(temperature, &self.statistics)
    }

    pub(super) fn statistics_sizes(&self) -> StatisticsSizes {
        StatisticsSizes::of(&self.statistics)
    }
}

/// Where a forward pass writes its results in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardResults {
    /// [`BatchTotals::losses`] f32: the loss.
    pub loss: DevicePtr,
    /// The f64 fields of [`Statistics`] and, under BEAR, behind them the sum of the rows' weights.
    pub statistics: DevicePtr,
    /// One f64: the temperature that was used.
    pub temperature: DevicePtr,
}

/// The inputs of a backward pass besides what was saved, in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upstream {
    /// [`BatchTotals::losses`] f32: the gradient of the loss.
    pub loss: DevicePtr,
    /// One f64: the temperature, as the forward pass wrote it.
    pub temperature: DevicePtr,
}
