//! Causal attention with grouped queries, and the linear layers around it.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{
    LlamaConfig, Parameters,
    cache::LayerCache,
    config::Architecture,
    forward::{Decoding, Sequences},
    linear::Linear,
    norm::Norm,
};
use crate::ops::{self, KeysValues, RotaryAngles};

/// The attention of one layer.
pub struct Attention {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    /// The norms of Qwen 3, over each head of the queries and of the keys.
    norms: Option<(Norm, Norm)>,
    /// Query heads.
    heads: usize,
    /// Key and value heads.
    key_heads: usize,
    /// Width of a head.
    width: usize,
}

impl Attention {
    /// Takes the weights whose names begin with `prefix`.
    pub fn new(
        config: &LlamaConfig,
        parameters: &mut Parameters,
        prefix: &str,
    ) -> anyhow::Result<Self> {
        let width = config.head_width();
        let (heads, key_heads) = (config.num_attention_heads, config.key_value_heads());
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
        let key = projection("k_proj", key_heads)?;
        let value = projection("v_proj", key_heads)?;
        let output = parameters.matrix(
            format!("{prefix}.self_attn.o_proj.weight"),
            config.hidden_size,
            heads * width,
        )?;
        let mut norm = |name: &str| {
            let name = format!("{prefix}.self_attn.{name}.weight");
            Norm::new(config, parameters, name, width)
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
            key_heads,
            width,
        })
    }

    /// Stops training the norms.
    pub fn freeze_norms(&mut self) {
        if let Some((query, key)) = &mut self.norms {
            query.freeze();
            key.freeze();
        }
    }

    /// Computes attention over whole sequences `x [batch, tokens, hidden]`, behind the keys and values of what all of them
    /// begin with. Also returns the keys and values that the sequences see.
    pub fn forward(
        &self,
        x: &Tensor,
        beginning: Option<&KeysValues>,
        sequences: &Sequences,
    ) -> Result<(Tensor, KeysValues)> {
        let seeds = sequences.dropout_seeds.as_ref();
        let (queries, new) = self.project(x, &sequences.angles, seeds)?;
        let seen = match beginning {
            Some(beginning) => new.behind(beginning)?,
            None => new,
        };
        let mixed = ops::attention(&queries, &seen.keys, &seen.values, &sequences.mask)?;
        Ok((self.output.forward(&mixed.flatten_from(2)?, seeds)?, seen))
    }

    /// Computes attention of the new tokens of a decoding step, `x [new tokens, 1, hidden]`, whose keys and values join the
    /// cache.
    pub fn decode(&self, x: &Tensor, cache: &mut LayerCache, step: &Decoding) -> Result<Tensor> {
        let (queries, KeysValues { keys, values }) = self.project(x, &step.angles, None)?;
        let new = KeysValues {
            keys: keys.squeeze(1)?,
            values: values.squeeze(1)?,
        };
        let mixed = cache.attend(&queries.squeeze(1)?, new, &step.seen)?;
        let mixed = mixed.flatten_from(1)?.unsqueeze(1)?;
        self.output.forward(&mixed, None)
    }

    /// Computes queries, keys and values `[batch, tokens, heads, head width]`, rotated to where they stand.
    fn project(
        &self,
        x: &Tensor,
        angles: &RotaryAngles,
        dropout_seeds: Option<&Arc<[u64]>>,
    ) -> Result<(Tensor, KeysValues)> {
        let (batch, tokens, _) = x.dims3()?;
        let project = |linear: &Linear, heads| {
            let rows = linear.forward(x, dropout_seeds)?;
            rows.reshape((batch, tokens, heads, self.width))
        };
        let mut queries = project(&self.query, self.heads)?;
        let mut keys = project(&self.key, self.key_heads)?;
        if let Some((query_norm, key_norm)) = &self.norms {
            queries = query_norm.forward(&queries)?;
            keys = key_norm.forward(&keys)?;
        }
        let new = KeysValues {
            keys: angles.rotate(&keys)?,
            values: project(&self.value, self.key_heads)?,
        };
        Ok((angles.rotate(&queries)?, new))
    }
}
