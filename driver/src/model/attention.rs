//! Causal attention with grouped queries.

use anyhow::Result;
use candle_core::{Tensor, Var};

use super::{
    LlamaConfig, Parameters,
    cache::{Cache, LayerCache},
    rotary::rotate,
    softmax::causal_softmax,
};

/// The attention of one layer.
pub struct Attention {
    query: Var,
    key: Var,
    value: Var,
    output: Var,
    heads: usize,
    key_value_heads: usize,
    width: usize,
    theta: f64,
}

impl Attention {
    pub fn new(config: &LlamaConfig, parameters: &mut Parameters, prefix: &str) -> Result<Self> {
        let width = config.head_size();
        let (heads, key_value_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let mut matrix = |name: &str, rows, columns| {
            parameters.matrix(format!("{prefix}.self_attn.{name}.weight"), rows, columns)
        };
        Ok(Self {
            query: matrix("q_proj", heads * width, config.hidden_size)?,
            key: matrix("k_proj", key_value_heads * width, config.hidden_size)?,
            value: matrix("v_proj", key_value_heads * width, config.hidden_size)?,
            output: matrix("o_proj", config.hidden_size, heads * width)?,
            heads,
            key_value_heads,
            width,
            theta: config.rope_theta,
        })
    }

    /// Attention over whole sequences that begin at position 0; also the keys and values `[batch, tokens, heads, width]`.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
        let (batch, tokens, _) = x.dims3()?;
        let (queries, keys, values) = self.project(x, &vec![0; batch])?;
        // A key and value head serves the `group` query heads beside each other: they are extra queries of that head.
        let group = self.heads / self.key_value_heads;
        let by_head = |tensor: &Tensor| tensor.transpose(1, 2)?.contiguous();
        let queries = by_head(&queries)?.reshape((
            batch,
            self.key_value_heads,
            group * tokens,
            self.width,
        ))?;
        let scores = queries.matmul(&by_head(&keys)?.t()?)?;
        let scores = scores.reshape((batch, self.heads, tokens, tokens))?;
        let weights = causal_softmax(&scores, 1.0 / (self.width as f64).sqrt())?;
        let weights = weights.reshape((batch, self.key_value_heads, group * tokens, tokens))?;
        let mixed = weights
            .matmul(&by_head(&values)?)?
            .reshape((batch, self.heads, tokens, self.width))?
            .transpose(1, 2)?
            .reshape((batch, tokens, self.heads * self.width))?;
        Ok((linear(&mixed, &self.output)?, keys, values))
    }

    /// Attention of one new token of every beam, `[beams, 1, hidden]`, which joins the cache.
    pub fn step(
        &self,
        x: &Tensor,
        layer: &mut LayerCache,
        cache: &Step,
    ) -> candle_core::Result<Tensor> {
        let (beams, _, _) = x.dims3()?;
        let (queries, keys, values) = self.project(x, &cache.positions)?;
        layer.push(&keys, &values)?;
        let queries = queries.reshape((beams, self.heads, self.width))?;
        let mixed = layer.attend(&queries, &cache.lengths, &cache.users)?;
        linear(
            &mixed.reshape((beams, 1, self.heads * self.width))?,
            &self.output,
        )
    }

    fn project(
        &self,
        x: &Tensor,
        first_positions: &[u32],
    ) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
        let (batch, tokens, _) = x.dims3()?;
        let heads = |weight, heads| linear(x, weight)?.reshape((batch, tokens, heads, self.width));
        Ok((
            rotate(
                &heads(&self.query, self.heads)?,
                first_positions,
                self.theta,
            )?,
            rotate(
                &heads(&self.key, self.key_value_heads)?,
                first_positions,
                self.theta,
            )?,
            heads(&self.value, self.key_value_heads)?,
        ))
    }
}

/// Where the beams of one decoding step stand.
pub struct Step {
    lengths: Vec<u32>,
    users: Vec<u32>,
    positions: Vec<u32>,
}

impl Step {
    pub fn of(cache: &Cache) -> Self {
        Self {
            lengths: cache.lengths.clone(),
            users: cache.users.clone(),
            positions: cache.next_positions(),
        }
    }
}

/// `x [batch, tokens, in] · weightᵀ [out, in]`, as one matrix product.
pub fn linear(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    let rows = x.reshape((batch * tokens, width))?;
    rows.matmul(&weight.t()?)?
        .reshape((batch, tokens, weight.dim(0)?))
}
