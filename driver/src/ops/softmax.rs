//! The softmax of attention under the causal mask, fused on the CPU in f32 and f64 and composed elsewhere.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use rayon::prelude::*;

use super::fused::{Float, dot, fused_or_composed, map_slices};

/// Computes the softmax of scores `[.., tokens, seen]` over the last dimension, where token `t` sees all but the last
/// `tokens − 1 − t`. `mask` is their [`causal_mask`](super::causal_mask).
pub(super) fn causal_softmax(scores: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (tokens, seen) = mask.dims2()?;
    fused_or_composed!(
        scores, T => map_slices([scores], |[scores]| fused::causal_softmax::<T>(scores, tokens, seen)),
        softmax_last_dim(&scores.broadcast_add(mask)?)
    )
}

/// Computes the gradient of the scores from the softmax and its gradient, both of one shape.
pub(super) fn softmax_gradient(softmax: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let width = softmax.dim(D::Minus1)?;
    fused_or_composed!(
        softmax, T => map_slices([softmax, gradient], |[softmax, gradient]| {
            fused::softmax_gradient::<T>(softmax, gradient, width)
        }),
        composed_gradient(softmax, gradient)
    )
}

fn composed_gradient(softmax: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let mean = (gradient * softmax)?.sum_keepdim(D::Minus1)?;
    softmax * gradient.broadcast_sub(&mean)?
}

mod fused {
    use super::*;

    /// The fewest rows that a thread takes at a time.
    const ROWS: usize = 64;

    pub fn causal_softmax<T: Float>(scores: &[T], tokens: usize, seen: usize) -> Vec<T> {
        let mut output = vec![T::zero(); scores.len()];
        let rows = output.par_chunks_mut(seen).zip(scores.par_chunks(seen));
        let rows = rows.enumerate().with_min_len(ROWS);
        rows.for_each(|(row, (output, scores))| {
            let visible = seen - tokens + row % tokens + 1;
            softmax(&scores[..visible], &mut output[..visible]);
        });
        output
    }

    fn softmax<T: Float>(scores: &[T], output: &mut [T]) {
        let larger = |largest, &score| if score > largest { score } else { largest };
        let largest = scores.iter().fold(T::neg_infinity(), larger);
        for (output, &score) in output.iter_mut().zip(scores) {
            *output = (score - largest).exponential();
        }
        let sum = output.iter().fold(T::zero(), |sum, &weight| sum + weight);
        let share = sum.recip();
        for weight in output {
            *weight *= share;
        }
    }

    pub fn softmax_gradient<T: Float>(softmax: &[T], gradient: &[T], width: usize) -> Vec<T> {
        let mut output = vec![T::zero(); softmax.len()];
        let rows = output.par_chunks_mut(width).zip(softmax.par_chunks(width));
        let rows = rows.zip(gradient.par_chunks(width)).with_min_len(ROWS);
        rows.for_each(|((output, softmax), gradient)| {
            let mean = dot(softmax, gradient);
            for ((output, &weight), &gradient) in output.iter_mut().zip(softmax).zip(gradient) {
                *output = weight * (gradient - mean);
            }
        });
        output
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::ops::{
        causal_mask,
        tests::{assert_close, wave},
    };

    #[test]
    fn the_fused_softmax_and_its_gradient_are_the_composed_ones() {
        for dtype in [DType::F32, DType::F64] {
            let [scores, gradient] = [0.3, 1.1].map(|from| wave(&[2, 3, 5, 21], from, dtype));
            let scores = (scores * 9.0).unwrap();
            let mask = causal_mask(16, 5, &scores).unwrap();
            let found = causal_softmax(&scores, &mask).unwrap();
            let expected = softmax_last_dim(&scores.broadcast_add(&mask).unwrap()).unwrap();
            assert_close(&found, &expected);
            let found = softmax_gradient(&expected, &gradient).unwrap();
            assert_close(&found, &composed_gradient(&expected, &gradient).unwrap());
        }
    }
}
