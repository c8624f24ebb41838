//! One layer: attention and a feed-forward block, each behind a norm and added to a residual stream.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Tensor;

use super::{
    LlamaConfig, Parameters,
    attention::Attention,
    cache::LayerCache,
    forward::{Decoding, Sequences},
    linear::Linear,
    norm::Norm,
};
use crate::ops::{self, FeedForwardWeights, KeysValues};

/// One layer.
pub struct Layer {
    attention_norm: Norm,
    attention: Attention,
    feed_forward_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Layer {
    /// Takes the weights whose names begin with `prefix`.
    pub fn new(config: &LlamaConfig, parameters: &mut Parameters, prefix: &str) -> Result<Self> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let norm = |parameters: &mut Parameters, name: &str| {
            Norm::new(
                config,
                parameters,
                format!("{prefix}.{name}.weight"),
                hidden,
            )
        };
        let linear = |parameters: &mut Parameters, name: &str, out, width| {
            let weight = parameters.matrix(format!("{prefix}.mlp.{name}.weight"), out, width)?;
            anyhow::Ok(Linear::new(weight, None))
        };
        Ok(Self {
            attention_norm: norm(parameters, "input_layernorm")?,
            attention: Attention::new(config, parameters, prefix)?,
            feed_forward_norm: norm(parameters, "post_attention_layernorm")?,
            gate: linear(parameters, "gate_proj", intermediate, hidden)?,
            up: linear(parameters, "up_proj", intermediate, hidden)?,
            down: linear(parameters, "down_proj", hidden, intermediate)?,
        })
    }

    /// Returns the linear layers with their names inside the layer.
    pub fn linears(&mut self) -> [(&'static str, &mut Linear); 7] {
        [
            ("self_attn.q_proj", &mut self.attention.query),
            ("self_attn.k_proj", &mut self.attention.key),
            ("self_attn.v_proj", &mut self.attention.value),
            ("self_attn.o_proj", &mut self.attention.output),
            ("mlp.gate_proj", &mut self.gate),
            ("mlp.up_proj", &mut self.up),
            ("mlp.down_proj", &mut self.down),
        ]
    }

    /// Stops training all weights.
    pub fn freeze(&mut self) {
        self.attention_norm.freeze();
        self.feed_forward_norm.freeze();
        self.attention.freeze_norms();
        for (_, linear) in self.linears() {
            linear.freeze();
        }
    }

    /// Computes the layer's output `[batch, tokens, hidden]` for whole sequences `x` of the same shape, behind the keys
    /// and values of what all of them begin with. Also returns the keys and values that the sequences see.
    pub fn forward(
        &self,
        x: &Tensor,
        beginning: Option<&KeysValues>,
        sequences: &Sequences,
    ) -> candle_core::Result<(Tensor, KeysValues)> {
        let normed = self.attention_norm.forward(x)?;
        let (attended, seen) = self.attention.forward(&normed, beginning, sequences)?;
        let output =
            self.feed_forward(&ops::add(x, &attended)?, sequences.dropout_seeds.as_ref())?;
        Ok((output, seen))
    }

    /// Computes the layer's output for the new tokens of a decoding step, `x [new tokens, 1, hidden]`, whose keys and
    /// values join the cache.
    pub fn decode(
        &self,
        x: &Tensor,
        cache: &mut LayerCache,
        step: &Decoding,
    ) -> candle_core::Result<Tensor> {
        let normed = self.attention_norm.forward(x)?;
        let attended = self.attention.decode(&normed, cache, step)?;
        self.feed_forward(&ops::add(x, &attended)?, None)
    }

    fn feed_forward(
        &self,
        x: &Tensor,
        dropout_seeds: Option<&Arc<[u64]>>,
    ) -> candle_core::Result<Tensor> {
        if let Some(weights) = self.frozen_feed_forward() {
            return ops::frozen_feed_forward(x, weights);
        }
        let normed = self.feed_forward_norm.forward(x)?;
        let gate = self.gate.forward(&normed, dropout_seeds)?;
        let up = self.up.forward(&normed, dropout_seeds)?;
        let inner = ops::swiglu(&gate, &up)?;
        ops::add(x, &self.down.forward(&inner, dropout_seeds)?)
    }

    /// Returns the weights of the feed-forward block, where none is trained or has an adapter.
    fn frozen_feed_forward(&self) -> Option<FeedForwardWeights> {
        let norm = &self.feed_forward_norm;
        (!norm.weight.track_op()).then_some(())?;
        Some(FeedForwardWeights {
            norm: norm.weight.clone(),
            epsilon: norm.epsilon,
            gate: self.gate.frozen_weight()?.clone(),
            up: self.up.frozen_weight()?.clone(),
            down: self.down.frozen_weight()?.clone(),
        })
    }
}
