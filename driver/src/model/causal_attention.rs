//! Causal attention over whole sequences in one operation, in blocks of queries. The attention weights are made again on
//! the way back, not kept: that costs two matrix products of a layer's many, and keeping them most of its memory.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

use super::{
    composed,
    elements::{Element, Elements, constant, dot, elements, for_element_of, largest},
    matrix::{Matrix, multiply},
    pass::Pass,
};

/// What the queries `[batch, tokens, heads, width]` see in keys and values
/// `[batch, past + tokens, key and value heads, width]`: query `t` the tokens up to `past + t`. A key and value head serves
/// the query heads beside each other.
pub fn causal_attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    pass: &Pass,
) -> Result<Tensor> {
    match &pass.mask {
        Some(mask) => composed::attention::attention(queries, keys, values, mask),
        None => queries.contiguous()?.apply_op3(
            &keys.contiguous()?,
            &values.contiguous()?,
            CausalAttention,
        ),
    }
}

/// Queries that are worked on together: a block needs no scores beyond its last query's.
const BLOCK: usize = 64;

struct CausalAttention;

impl CustomOp3 for CausalAttention {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        query_layout: &Layout,
        keys: &CpuStorage,
        key_layout: &Layout,
        values: &CpuStorage,
        value_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::of(
            query_layout.shape(),
            key_layout.shape(),
            value_layout.shape(),
        )?;
        for_element_of!(queries, T => {
            let past = Past {
                keys: elements::<T>(keys, key_layout)?,
                values: elements(values, value_layout)?,
            };
            let output = sizes.mixed(elements(queries, query_layout)?, &past);
            Ok((T::to_cpu_storage_owned(output), query_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::of(queries.shape(), keys.shape(), values.shape())?;
        let gradient = gradient.contiguous()?;
        for_element_of!(queries, T => {
            let gradients = {
                let (keys, values) = (Elements::<T>::of(keys)?, Elements::of(values)?);
                let past = Past { keys: &keys, values: &values };
                sizes.gradients(&Elements::of(queries)?, &past, &Elements::of(&gradient)?)
            };
            let wanted = |values: Vec<T>, tensor: &Tensor| match tensor.track_op() {
                true => Tensor::from_vec(values, tensor.shape(), tensor.device()).map(Some),
                false => Ok(None),
            };
            let [of_queries, of_keys, of_values] = gradients;
            Ok((
                wanted(of_queries, queries)?,
                wanted(of_keys, keys)?,
                wanted(of_values, values)?,
            ))
        })
    }
}

struct Sizes {
    batch: usize,
    /// Tokens before the first query's own.
    past: usize,
    tokens: usize,
    heads: usize,
    key_value_heads: usize,
    width: usize,
}

struct Past<'a, T> {
    keys: &'a [T],
    values: &'a [T],
}

/// A block of one head's queries, and where it and what it sees begin.
struct Block {
    /// The first of its queries and of their outputs.
    query: usize,
    /// The head's first key and value.
    key: usize,
    /// Tokens before its first query's own.
    past: usize,
    count: usize,
}

impl Block {
    /// Tokens that its last query sees.
    fn seen(&self) -> usize {
        self.past + self.count
    }
}

impl Sizes {
    fn of(queries: &Shape, keys: &Shape, values: &Shape) -> Result<Self> {
        let (batch, tokens, heads, width) = queries.dims4()?;
        let (_, all, key_value_heads, _) = keys.dims4()?;
        let fit = keys.dims() == [batch, all, key_value_heads, width]
            && values.dims() == keys.dims()
            && all >= tokens
            && key_value_heads > 0
            && heads.is_multiple_of(key_value_heads);
        if !fit {
            bail!("queries {queries:?} do not fit keys {keys:?} and values {values:?}");
        }
        Ok(Self {
            batch,
            past: all - tokens,
            tokens,
            heads,
            key_value_heads,
            width,
        })
    }

    /// Tokens that the last query sees.
    fn all(&self) -> usize {
        self.past + self.tokens
    }

    /// How far apart the rows of a query head, and of a key and value head, lie.
    fn strides(&self) -> (usize, usize) {
        (self.heads * self.width, self.key_value_heads * self.width)
    }

    fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        let (query_stride, key_stride) = self.strides();
        let group = self.heads / self.key_value_heads;
        let heads =
            (0..self.batch).flat_map(move |row| (0..self.heads).map(move |head| (row, head)));
        heads.flat_map(move |(row, head)| {
            (0..self.tokens).step_by(BLOCK).map(move |first| Block {
                query: (row * self.tokens + first) * query_stride + head * self.width,
                key: row * self.all() * key_stride + head / group * self.width,
                past: self.past + first,
                count: BLOCK.min(self.tokens - first),
            })
        })
    }

    /// The attention weights of a block, `[count, seen]`.
    fn weights<T: Element>(&self, block: &Block, queries: &[T], keys: &[T], weights: &mut [T]) {
        let (query_stride, key_stride) = self.strides();
        let seen = block.seen();
        let scale = constant::<T>((self.width as f64).sqrt().recip());
        let queries = Matrix::strided(
            &queries[block.query..],
            block.count,
            self.width,
            query_stride,
        );
        let keys = Matrix::strided(&keys[block.key..], seen, self.width, key_stride);
        multiply(weights, seen, T::zero(), queries, keys.t(), scale);
        for (row, weights) in weights.chunks_mut(seen).enumerate() {
            let (visible, hidden) = weights.split_at_mut(block.past + row + 1);
            hidden.fill(T::zero());
            softmax(visible);
        }
    }

    fn mixed<T: Element>(&self, queries: &[T], past: &Past<T>) -> Vec<T> {
        let (query_stride, key_stride) = self.strides();
        let mut output = vec![T::zero(); queries.len()];
        let mut scratch = vec![T::zero(); BLOCK * self.all()];
        for block in self.blocks() {
            let seen = block.seen();
            let weights = &mut scratch[..block.count * seen];
            self.weights(&block, queries, past.keys, weights);
            let weights = Matrix::new(weights, seen);
            let values = Matrix::strided(&past.values[block.key..], seen, self.width, key_stride);
            let output = &mut output[block.query..];
            multiply(output, query_stride, T::zero(), weights, values, T::one());
        }
        output
    }

    fn gradients<T: Element>(&self, queries: &[T], past: &Past<T>, gradient: &[T]) -> [Vec<T>; 3] {
        let (query_stride, key_stride) = self.strides();
        let scale = constant::<T>((self.width as f64).sqrt().recip());
        let mut of_queries = vec![T::zero(); queries.len()];
        let mut of_keys = vec![T::zero(); past.keys.len()];
        let mut of_values = vec![T::zero(); past.values.len()];
        let mut scratch = [(); 2].map(|()| vec![T::zero(); BLOCK * self.all()]);
        for block in self.blocks() {
            let seen = block.seen();
            let [weights, of_scores] = scratch.each_mut().map(|all| &mut all[..block.count * seen]);
            self.weights(&block, queries, past.keys, weights);
            let of_head = |all, stride| Matrix::strided(all, block.count, self.width, stride);
            let seen_rows = |all| Matrix::strided(all, seen, self.width, key_stride);
            let gradient = of_head(&gradient[block.query..], query_stride);
            let values = seen_rows(&past.values[block.key..]);
            multiply(of_scores, seen, T::zero(), gradient, values.t(), T::one());
            let of_value = &mut of_values[block.key..];
            multiply(
                of_value,
                key_stride,
                T::one(),
                Matrix::new(weights, seen).t(),
                gradient,
                T::one(),
            );

            for (of_scores, weights) in of_scores.chunks_mut(seen).zip(weights.chunks(seen)) {
                let mean = dot(of_scores, weights);
                for (of_score, &weight) in of_scores.iter_mut().zip(weights) {
                    *of_score = weight * (*of_score - mean);
                }
            }
            let of_scores = Matrix::new(of_scores, seen);
            let keys = seen_rows(&past.keys[block.key..]);
            let of_query = &mut of_queries[block.query..];
            multiply(of_query, query_stride, T::zero(), of_scores, keys, scale);
            let queries = of_head(&queries[block.query..], query_stride);
            let of_key = &mut of_keys[block.key..];
            multiply(of_key, key_stride, T::one(), of_scores.t(), queries, scale);
        }
        [of_queries, of_keys, of_values]
    }
}

fn softmax<T: Element>(scores: &mut [T]) {
    let largest = largest(scores);
    for score in scores.iter_mut() {
        *score = (*score - largest).exponential();
    }
    let share = scores
        .iter()
        .fold(T::zero(), |sum, &weight| sum + weight)
        .recip();
    for weight in scores {
        *weight *= share;
    }
}
