//! Causal attention with grouped queries.

use anyhow::Result;
use candle_core::Tensor;

use super::{
    LlamaConfig, Parameters,
    cache::{Feed, LayerCache},
    causal_attention::causal_attention,
    config::Architecture,
    linear::Linear,
    norm::Norm,
    pass::Pass,
};

/// The attention of one layer.
pub struct Attention {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    /// Qwen 3 norms each head of the queries and of the keys.
    norms: Option<(Norm, Norm)>,
    heads: usize,
    key_value_heads: usize,
    width: usize,
}

impl Attention {
    pub fn new(config: &LlamaConfig, parameters: &mut Parameters, prefix: &str) -> Result<Self> {
        let width = config.head_width();
        let (heads, key_value_heads) = (config.num_attention_heads, config.key_value_heads());
        let architecture = config.architecture()?;
        let mut projection = |name: &str, heads: usize| {
            let name = format!("{prefix}.self_attn.{name}");
            let weight =
                parameters.matrix(format!("{name}.weight"), heads * width, config.hidden_size)?;
            let bias = match architecture {
                Architecture::Qwen2 => {
                    Some(parameters.bias(format!("{name}.bias"), heads * width)?)
                }
                _ => None,
            };
            anyhow::Ok(Linear::new(weight, bias))
        };
        let query = projection("q_proj", heads)?;
        let key = projection("k_proj", key_value_heads)?;
        let value = projection("v_proj", key_value_heads)?;
        let output = parameters.matrix(
            format!("{prefix}.self_attn.o_proj.weight"),
            config.hidden_size,
            heads * width,
        )?;
        let mut norm = |name: &str| {
            let weight = parameters.scale(format!("{prefix}.self_attn.{name}.weight"), width)?;
            anyhow::Ok(Norm::new(weight, config.rms_norm_eps))
        };
        Ok(Self {
            query,
            key,
            value,
            output: Linear::new(output, None),
            norms: match architecture {
                Architecture::Qwen3 => Some((norm("q_norm")?, norm("k_norm")?)),
                _ => None,
            },
            heads,
            key_value_heads,
            width,
        })
    }

    /// Trains the norms no further.
    pub fn freeze_norms(&mut self) {
        if let Some((query, key)) = &mut self.norms {
            query.freeze();
            key.freeze();
        }
    }

    /// Attention over whole sequences that begin at position 0; also the keys and values `[batch, tokens, heads, width]`.
    pub fn forward(
        &self,
        x: &Tensor,
        pass: &Pass,
    ) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
        let (batch, tokens, _) = x.dims3()?;
        let (queries, keys, values) = self.project(x, pass)?;
        let mixed = causal_attention(&queries, &keys, &values, pass)?;
        let mixed = mixed.reshape((batch, tokens, self.heads * self.width))?;
        Ok((self.output.forward(&mixed, pass)?, keys, values))
    }

    /// Attention of tokens that are fed, `[tokens, 1, hidden]`, which join the cache.
    pub fn step(
        &self,
        x: &Tensor,
        layer: &mut LayerCache,
        feed: &Feed,
        pass: &Pass,
    ) -> candle_core::Result<Tensor> {
        let (tokens, _, _) = x.dims3()?;
        let (queries, keys, values) = self.project(x, pass)?;
        layer.push(&keys, &values)?;
        let mixed = layer.attend(&queries, feed, pass)?;
        self.output
            .forward(&mixed.reshape((tokens, 1, self.heads * self.width))?, pass)
    }

    /// Queries, keys and values `[batch, tokens, heads, width]`, where they stand.
    fn project(&self, x: &Tensor, pass: &Pass) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
        let (batch, tokens, _) = x.dims3()?;
        let project = |linear: &Linear, heads| {
            linear
                .forward(x, pass)?
                .reshape((batch, tokens, heads, self.width))
        };
        let mut queries = project(&self.query, self.heads)?;
        let mut keys = project(&self.key, self.key_value_heads)?;
        if let Some((query_norm, key_norm)) = &self.norms {
            queries = query_norm.forward(&queries, pass.form)?;
            keys = key_norm.forward(&keys, pass.form)?;
        }
        Ok((
            pass.turns.rotate(&queries)?,
            pass.turns.rotate(&keys)?,
            project(&self.value, self.key_value_heads)?,
        ))
    }
}
