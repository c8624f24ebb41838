//! The row weights of BEAR, as far as they do not depend on logits.

use bytemuck::Zeroable;

use super::kernel_params;
use crate::backend::batch::Batch;

kernel_params! {
    /// How a pass weighs its rows.
    pub struct BeamWeights in "selection.cuh" {
        lambda: f64, xi: f64, others: f64, beams: u32, normalises: u32,
    }
}

impl BeamWeights {
    pub(super) fn of(_batch: &Batch) -> Self {
        Self::zeroed()
    }

    /// Whether rows have weights that wait for the logits of all.
    pub(super) fn weighs(&self) -> bool {
        self.beams > 0
    }
}
