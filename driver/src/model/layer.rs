//! One layer: attention and a gated feed-forward block, each behind a norm and beside a residual stream.

use anyhow::Result;
use candle_core::Tensor;

use super::{
    LlamaConfig, Parameters,
    attention::{Attention, KeysValues},
    cache::{Feed, LayerCache},
    feed_forward::gated,
    form::Form,
    frozen_feed_forward::FrozenFeedForward,
    linear::Linear,
    norm::Norm,
    pass::Pass,
    residual::residual,
};

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
    pub fn new(config: &LlamaConfig, parameters: &mut Parameters, prefix: &str) -> Result<Self> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let norm = |parameters: &mut Parameters, name: &str| {
            let weight = parameters.scale(format!("{prefix}.{name}.weight"), hidden)?;
            anyhow::Ok(Norm::new(weight, config.rms_norm_eps))
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

    /// The linear layers, by their names inside the layer.
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

    /// Trains none of the weights further.
    pub fn freeze(&mut self) {
        self.attention_norm.freeze();
        self.feed_forward_norm.freeze();
        self.attention.freeze_norms();
        for (_, linear) in self.linears() {
            linear.freeze();
        }
    }

    /// The layer's output for whole sequences, behind what all of them begin with; also all that they see.
    pub fn forward(
        &self,
        x: &Tensor,
        beginning: Option<&KeysValues>,
        pass: &Pass,
    ) -> candle_core::Result<(Tensor, KeysValues)> {
        let normed = self.attention_norm.forward(x, pass.form)?;
        let (attended, seen) = self.attention.forward(&normed, beginning, pass)?;
        Ok((self.feed_forward(&residual(x, &attended)?, pass)?, seen))
    }

    /// The layer's output for tokens that are fed, `[tokens, 1, hidden]`.
    pub fn step(
        &self,
        x: &Tensor,
        cached: &mut LayerCache,
        feed: &Feed,
        pass: &Pass,
    ) -> candle_core::Result<Tensor> {
        let normed = self.attention_norm.forward(x, pass.form)?;
        let attended = self.attention.step(&normed, cached, feed, pass)?;
        self.feed_forward(&residual(x, &attended)?, pass)
    }

    fn feed_forward(&self, x: &Tensor, pass: &Pass) -> candle_core::Result<Tensor> {
        let norm = &self.feed_forward_norm;
        let frozen = (self.gate.frozen_weight())
            .zip(self.up.frozen_weight())
            .zip(self.down.frozen_weight());
        if let Some(((gate, up), down)) = frozen
            && pass.form == Form::Fused
            && !norm.weight.track_op()
        {
            let weights = [gate, up, down];
            return FrozenFeedForward::new(&norm.weight, norm.epsilon, weights).forward(x);
        }
        let normalised = norm.forward(x, pass.form)?;
        let inner = gated(
            &self.gate.forward(&normalised, pass)?,
            &self.up.forward(&normalised, pass)?,
            pass.form,
        )?;
        residual(x, &self.down.forward(&inner, pass)?)
    }
}
