//! Attention with grouped queries.

use candle_core::{D, Result, Tensor};

use super::{differentiable, wide, wide_dtype};

/// What queries `[batch, tokens, heads, width]` see in keys and values `[batch, seen, key and value heads, width]`. The
/// mask, which broadcasts to `[batch, heads, tokens, seen]`, is added to the scores. The attention weights are made
/// again on the way back.
pub fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: &Tensor,
) -> Result<Tensor> {
    let heads = Heads {
        queries: queries.dim(2)?,
        keys: keys.dim(2)?,
        scale: (queries.dim(3)? as f64).sqrt().recip(),
        mask: mask.clone(),
    };
    let again = heads.clone();
    differentiable(
        [queries, keys, values],
        |[queries, keys, values]| {
            let (queries, keys) = (heads.grouped(queries)?, heads.alone(keys)?);
            let weights = heads.weights(&queries, &keys)?.to_dtype(values.dtype())?;
            heads.ungrouped(&weights.matmul(&heads.alone(values)?)?)
        },
        move |[queries, keys, values], gradient, _| {
            again.gradients(queries, keys, values, gradient)
        },
    )
}

#[derive(Clone)]
struct Heads {
    queries: usize,
    keys: usize,
    scale: f64,
    mask: Tensor,
}

impl Heads {
    /// Queries, scaled, `[batch, key heads, queries of its group · tokens, width]`: all that share a key head are one
    /// matrix.
    fn grouped(&self, queries: &Tensor) -> Result<Tensor> {
        self.stacked(&(queries * self.scale)?)
    }

    fn stacked(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, _, _, width) = x.dims4()?;
        let by_head = x.transpose(1, 2)?.contiguous()?;
        by_head.reshape((batch, self.keys, (), width))
    }

    /// The way back: `[batch, tokens, heads, width]`.
    fn ungrouped(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, _, _, width) = x.dims4()?;
        let by_head = x.reshape((batch, self.queries, (), width))?;
        by_head.transpose(1, 2)?.contiguous()
    }

    /// Keys or values `[batch, key heads, seen, width]`.
    fn alone(&self, x: &Tensor) -> Result<Tensor> {
        x.transpose(1, 2)?.contiguous()
    }

    /// `[batch, key heads, queries of its group · tokens, seen]`.
    fn weights(&self, queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let scores = wide(&queries.matmul(&keys.t()?)?)?;
        let (batch, _, _, seen) = scores.dims4()?;
        let by_head = scores.reshape((batch, self.queries, (), seen))?;
        softmax(&by_head.broadcast_add(&self.mask)?)?.reshape(scores.shape())
    }

    fn gradients(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let dtype = queries.dtype();
        let (queries, keys) = (self.grouped(queries)?, self.alone(keys)?);
        let (values, gradient) = (self.alone(values)?, self.stacked(gradient)?);
        let weights = self.weights(&queries, &keys)?;
        let of_values = weights.to_dtype(dtype)?.t()?.matmul(&gradient)?;
        let of_weights = wide(&gradient.matmul(&values.t()?)?)?;
        let mean = (&of_weights * &weights)?.sum_keepdim(D::Minus1)?;
        let of_scores = (weights * of_weights.broadcast_sub(&mean)?)?.to_dtype(dtype)?;
        let of_queries = (of_scores.matmul(&keys)? * self.scale)?;
        let of_keys = of_scores.t()?.matmul(&queries)?;
        Ok([
            Some(self.ungrouped(&of_queries)?),
            Some(self.alone(&of_keys)?),
            Some(self.alone(&of_values)?),
        ])
    }
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let exponentials = scores
        .broadcast_sub(&scores.max_keepdim(D::Minus1)?)?
        .exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}

/// `[tokens, past + tokens]`: every token sees itself and those before it, the first of which are `past`. `like` is of
/// the model's type and device.
pub fn causal_mask(past: usize, tokens: usize, like: &Tensor) -> Result<Tensor> {
    let all = past + tokens;
    let seen = |query: usize| (0..all).map(move |key| key <= past + query);
    mask((0..tokens).flat_map(seen), (tokens, all), like)
}

/// 0 where something is seen, −∞ where not.
pub fn mask(
    seen: impl Iterator<Item = bool>,
    shape: impl Into<candle_core::Shape>,
    like: &Tensor,
) -> Result<Tensor> {
    let values: Vec<f32> = seen
        .map(|seen| if seen { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    Tensor::from_vec(values, shape.into(), like.device())?.to_dtype(wide_dtype(like.dtype()))
}
