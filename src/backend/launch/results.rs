//! The properties of a batch and the results of a pass that the losses over logits and over hidden states have in common.

use super::{BeamWeights, DevicePtr, StatisticsSizes, TemperaturePlan};
use crate::backend::batch::Batch;
use crate::{Result, Statistics, Temperature};

/// The properties of a batch that plans depend on besides its rows.
#[derive(Debug, Clone)]
pub struct BatchTotals {
    pub(super) positions: usize,
    /// Whether the loss is one number; otherwise there is one for each position.
    pub(super) reduced: bool,
    /// Whether the loss is multiplied by τ.
    pub(super) times_temperature: bool,
    /// The statistics that do not depend on logits.
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

    /// Returns N, the number of flattened positions of the batch.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Returns the number of elements of the loss: one, or one for each position.
    #[must_use]
    pub fn losses(&self) -> usize {
        if self.reduced { 1 } else { self.positions }
    }

    /// Returns the plan for the temperature of a pass that takes a step of `temperature` with the statistics of this batch.
    ///
    /// # Errors
    /// Those of [`Temperature::step`]. All of them depend on the sizes of the sets alone.
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
    /// The loss, [`BatchTotals::losses`] f32.
    pub loss: DevicePtr,
    /// The f64 fields of [`Statistics`] and, under BEAR, one more f64 with the sum of the rows' weights.
    pub statistics: DevicePtr,
    /// The temperature that the loss was computed at, one f64.
    pub temperature: DevicePtr,
}

/// The inputs of a backward pass in device memory, besides what the forward pass saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upstream {
    /// The gradient of the loss, [`BatchTotals::losses`] f32.
    pub loss: DevicePtr,
    /// The temperature as the forward pass wrote it, one f64.
    pub temperature: DevicePtr,
}
