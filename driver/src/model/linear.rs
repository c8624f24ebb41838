//! A linear layer, with a low-rank adapter or without.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::lora::Adapter;
use crate::ops;

/// A linear layer `x · weightᵀ (+ bias)`.
pub struct Linear {
    /// `[out, in]`.
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Linear {
    /// Makes a layer of `weight [out, in]` and `bias [out]`. Variables among them are trained.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self {
            weight,
            bias,
            adapter: None,
        }
    }

    /// Returns the width of an output row and of an input row.
    pub fn shape(&self) -> Result<(usize, usize)> {
        self.weight.dims2()
    }

    /// Stops training weight and bias.
    pub fn freeze(&mut self) {
        self.weight = self.weight.detach();
        self.bias = self.bias.as_ref().map(Tensor::detach);
    }

    /// Puts an adapter beside the weight, which must be frozen.
    pub fn adapt(&mut self, adapter: Adapter) {
        self.adapter = Some(adapter);
    }

    /// Returns the weight of a layer that is frozen and has neither bias nor adapter.
    pub fn frozen_weight(&self) -> Option<&Tensor> {
        let alone = self.adapter.is_none() && self.bias.is_none() && !self.weight.track_op();
        alone.then_some(&self.weight)
    }

    /// Returns the weight with its adapter added to it.
    pub fn merged_weight(&self) -> Result<Tensor> {
        match &self.adapter {
            None => Ok(self.weight.clone()),
            Some(adapter) => {
                let change = (adapter.up.matmul(&adapter.down)?.detach() * adapter.scale)?;
                (self.weight.to_dtype(change.dtype())? + change)?.to_dtype(self.weight.dtype())
            }
        }
    }

    /// Computes `x [.., in]` → `[.., out]`. With a seed for each sequence, the adapter's input has dropout.
    pub fn forward(&self, x: &Tensor, dropout_seeds: Option<&Arc<[u64]>>) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        match &self.adapter {
            None => ops::linear(x, &self.weight, bias),
            Some(adapter) => {
                let adapter = adapter.low_rank(dropout_seeds);
                ops::linear_with_lora(x, &self.weight, bias, adapter)
            }
        }
    }
}
