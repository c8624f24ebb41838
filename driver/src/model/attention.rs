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

/// What tokens leave for later ones to see in one layer.
pub struct KeysValues {
    /// `[batch, tokens, heads, width]`.
    pub keys: Tensor,
    /// Of the same shape.
    pub values: Tensor,
}

impl KeysValues {
    /// How many tokens each sequence has.
    pub fn tokens(&self) -> usize {
        self.keys.dims()[1]
    }

    /// Each sequence behind the only one of `beginning`.
    fn behind(self, beginning: Option<&Self>) -> candle_core::Result<Self> {
        let Some(beginning) = beginning else {
            return Ok(self);
        };
        let join = |beginning: &Tensor, own: &Tensor| {
            let (batch, _, heads, width) = own.dims4()?;
            let shape = (batch, beginning.dim(1)?, heads, width);
            Tensor::cat(&[&beginning.broadcast_as(shape)?.contiguous()?, own], 1)
        };
        Ok(Self {
            keys: join(&beginning.keys, &self.keys)?,
            values: join(&beginning.values, &self.values)?,
        })
    }
}

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

    /// Attention over whole sequences, behind what all of them begin with; also all that they see.
    pub fn forward(
        &self,
        x: &Tensor,
        beginning: Option<&KeysValues>,
        pass: &Pass,
    ) -> candle_core::Result<(Tensor, KeysValues)> {
        let (batch, tokens, _) = x.dims3()?;
        let (queries, keys, values) = self.project(x, pass)?;
        let seen = KeysValues { keys, values }.behind(beginning)?;
        let mixed = causal_attention(&queries, &seen.keys, &seen.values, pass)?;
        let mixed = mixed.reshape((batch, tokens, self.heads * self.width))?;
        Ok((self.output.forward(&mixed, pass)?, seen))
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
