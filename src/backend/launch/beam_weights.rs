//! The settings of BEAR's row weights, as kernels take them.

use bytemuck::Zeroable;

use super::{DevicePtr, kernel_params};
use crate::Statistics;
use crate::backend::batch::Batch;

kernel_params! {
    /// The settings of BEAR's row weights. All fields are 0 without BEAR.
    pub struct BeamWeights in "selection.cuh" {
        lambda: f64, xi: f64, unary_weight: f64, denominator: f64, sum: Option<DevicePtr>, beams: u32,
        normalises: u32,
    }
}

impl BeamWeights {
    pub(super) fn of(batch: &Batch) -> Self {
        let Some(bear) = batch.bear else {
            return Self::zeroed();
        };
        Self {
            lambda: bear.lambda,
            xi: bear.xi,
            unary_weight: batch.unary_loss_weight.unwrap_or(0.0) * bear.weight_of_a_tie(),
            denominator: batch.denominator,
            sum: None,
            beams: bear.beams,
            normalises: batch.unary_loss_weight.is_some().into(),
        }
    }

    /// Returns the same settings with the sum of the weights written after the statistics.
    pub(super) fn with_sum_after(self, statistics: Option<DevicePtr>) -> Self {
        let bytes = (Statistics::LENGTH * size_of::<f64>()) as u64;
        Self {
            sum: statistics.map(|statistics| statistics.offset(bytes)),
            ..self
        }
    }

    /// Returns whether rows have BEAR's weights, which depend on the logits of all rows.
    pub(super) fn is_enabled(&self) -> bool {
        self.beams > 0
    }
}
