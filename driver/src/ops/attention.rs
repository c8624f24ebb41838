//! Causal attention with grouped queries.

use candle_core::{Result, Shape, Tensor};

use super::{
    differentiable::{accumulator_dtype, differentiable, widen},
    softmax::{causal_softmax, softmax_gradient},
};

/// Computes attention with grouped queries: `softmax(queries · keysᵀ / sqrt(head width) + mask) · values`, head by head.
///
/// `queries` are `[batch, tokens, heads, head width]`, `keys` and `values` `[batch, seen, key heads, head width]`; a key
/// head serves the query heads beside each other. `mask` broadcasts to `[batch, heads, tokens, seen]`
/// ([`causal_mask`]). The attention weights are computed again in the backward pass instead of being saved: that costs two of
/// a layer's many matrix products and spares most of its memory.
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
    let saved = heads.clone();
    differentiable(
        [queries, keys, values],
        |[queries, keys, values]| heads.attend(queries, keys, values),
        move |[queries, keys, values], gradient, _| {
            Ok(saved.gradients(queries, keys, values, gradient)?.map(Some))
        },
    )
}

/// Returns the mask `[tokens, past + tokens]` with which every token sees itself and all before it, the first of which
/// are `past` tokens without queries. `like` is a tensor of the model's type and device.
pub fn causal_mask(past: usize, tokens: usize, like: &Tensor) -> Result<Tensor> {
    let seen = past + tokens;
    let sees = |query: usize| (0..seen).map(move |key| key <= past + query);
    mask((0..tokens).flat_map(sees), (tokens, seen), like)
}

/// Returns what is added to scores: 0 where something is seen, −∞ where not.
pub(super) fn mask(
    sees: impl Iterator<Item = bool>,
    shape: impl Into<Shape>,
    like: &Tensor,
) -> Result<Tensor> {
    let values: Vec<f32> = sees
        .map(|sees| if sees { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    Tensor::from_vec(values, shape.into(), like.device())?.to_dtype(accumulator_dtype(like.dtype()))
}

/// Keys and values of some tokens, in tensors of the same shape.
pub struct KeysValues {
    /// The keys.
    pub keys: Tensor,
    /// The values.
    pub values: Tensor,
}

impl KeysValues {
    /// Puts the tokens of `beginning [1, tokens, heads, head width]` before those of each batch row
    /// `[batch, tokens, heads, head width]`.
    pub fn behind(self, beginning: &Self) -> Result<Self> {
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

#[derive(Clone)]
struct Heads {
    /// Query heads.
    queries: usize,
    /// Key heads.
    keys: usize,
    /// What scores are multiplied by.
    scale: f64,
    /// What is added to scores.
    mask: Tensor,
}

impl Heads {
    fn attend(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let (queries, keys) = (self.scaled(queries)?, by_head(keys)?);
        let weights = self.weights(&queries, &keys)?.to_dtype(values.dtype())?;
        self.by_token(&weights.matmul(&by_head(values)?)?)
    }

    /// Computes the gradients of queries, keys and values.
    fn gradients(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let dtype = queries.dtype();
        let (queries, keys) = (self.scaled(queries)?, by_head(keys)?);
        let (values, gradient) = (by_head(values)?, self.grouped(gradient)?);
        let weights = self.weights(&queries, &keys)?;
        let of_values = weights.to_dtype(dtype)?.t()?.matmul(&gradient)?;
        let of_weights = widen(&gradient.matmul(&values.t()?)?)?;
        let of_scores = softmax_gradient(&weights, &of_weights)?.to_dtype(dtype)?;
        let of_queries = (of_scores.matmul(&keys)? * self.scale)?;
        let of_keys = of_scores.t()?.matmul(&queries)?;
        Ok([
            self.by_token(&of_queries)?,
            by_head(&of_keys)?,
            by_head(&of_values)?,
        ])
    }

    /// Computes the attention weights `[batch, key heads, query heads of each · tokens, seen]`.
    fn weights(&self, queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let scores = widen(&queries.matmul(&keys.t()?)?)?;
        let (batch, _, _, seen) = scores.dims4()?;
        let by_query_head = scores.reshape((batch, self.queries, (), seen))?;
        causal_softmax(&by_query_head, &self.mask)?.reshape(scores.shape())
    }

    /// Multiplies queries by the scale of the scores, and groups them.
    fn scaled(&self, queries: &Tensor) -> Result<Tensor> {
        self.grouped(&(queries * self.scale)?)
    }

    /// Brings `[batch, tokens, heads, head width]` into `[batch, key heads, query heads of each · tokens, head width]`: all
    /// query heads that share a key head are one matrix.
    fn grouped(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, _, _, width) = x.dims4()?;
        by_head(x)?.reshape((batch, self.keys, (), width))
    }

    /// Undoes [`Self::grouped`].
    fn by_token(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, _, _, width) = x.dims4()?;
        by_head(&x.reshape((batch, self.queries, (), width))?)
    }
}

/// Swaps tokens and heads, in `[batch, tokens, heads, head width]` as in `[batch, heads, tokens, head width]`.
pub(super) fn by_head(x: &Tensor) -> Result<Tensor> {
    x.transpose(1, 2)?.contiguous()
}
