//! RMSNorm with its weight.

use anyhow::Result;
use candle_core::Tensor;

use super::{LlamaConfig, Parameters};
use crate::ops;

/// An RMSNorm over the last dimension.
pub struct Norm {
    /// `[width]`.
    pub weight: Tensor,
    /// What is added to the mean square before its root is taken.
    pub epsilon: f64,
}

impl Norm {
    /// Takes the weight of this name.
    pub fn new(
        config: &LlamaConfig,
        parameters: &mut Parameters,
        name: String,
        width: usize,
    ) -> Result<Self> {
        Ok(Self {
            weight: parameters.scale(name, width)?,
            epsilon: config.rms_norm_eps,
        })
    }

    /// Stops training the weight.
    pub fn freeze(&mut self) {
        self.weight = self.weight.detach();
    }

    /// Normalises `x [.., width]`.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        ops::rms_norm(x, &self.weight, self.epsilon)
    }
}
