//! The causal softmax of attention scores, scaled and masked in one pass: candle's own softmax has no backward.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::elements::{Element, constant, elements, for_element_of, largest};

/// Attention weights from scores `[.., tokens, tokens]`: query `t` sees the keys up to `t`.
pub fn causal_softmax(scores: &Tensor, scale: f64) -> Result<Tensor> {
    scores.contiguous()?.apply_op1(CausalSoftmax { scale })
}

struct CausalSoftmax {
    scale: f64,
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let tokens = layout.dims().last().copied().unwrap_or(1);
        for_element_of!(scores, T => {
            let weights = attention_weights::<T>(elements(scores, layout)?, tokens, constant(self.scale));
            Ok((candle_core::WithDType::to_cpu_storage_owned(weights), layout.shape().clone()))
        })
    }

    fn bwd(&self, _scores: &Tensor, weights: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        weights
            .apply_op2_no_bwd(&gradient, &ScoreGradient { scale: self.scale })
            .map(Some)
    }
}

struct ScoreGradient {
    scale: f64,
}

impl CustomOp2 for ScoreGradient {
    fn name(&self) -> &'static str {
        "causal-softmax-gradient"
    }

    fn cpu_fwd(
        &self,
        weights: &CpuStorage,
        weights_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let tokens = weights_layout.dims().last().copied().unwrap_or(1);
        for_element_of!(weights, T => {
            let output = score_gradient::<T>(
                elements(weights, weights_layout)?,
                elements(gradient, gradient_layout)?,
                tokens,
                constant(self.scale),
            );
            Ok((candle_core::WithDType::to_cpu_storage_owned(output), weights_layout.shape().clone()))
        })
    }
}

fn attention_weights<T: Element>(scores: &[T], tokens: usize, scale: T) -> Vec<T> {
    let mut weights = vec![T::zero(); scores.len()];
    let rows = weights
        .par_chunks_mut(tokens)
        .zip(scores.par_chunks(tokens))
        .enumerate();
    rows.with_min_len(32).for_each(|(row, (weights, scores))| {
        let seen = row % tokens + 1;
        let (weights, scores) = (&mut weights[..seen], &scores[..seen]);
        let largest = largest(scores);
        let mut sum = T::zero();
        for (weight, &score) in weights.iter_mut().zip(scores) {
            *weight = ((score - largest) * scale).exp();
            sum += *weight;
        }
        for weight in weights {
            *weight /= sum;
        }
    });
    weights
}

fn score_gradient<T: Element>(weights: &[T], gradient: &[T], tokens: usize, scale: T) -> Vec<T> {
    let mut output = vec![T::zero(); weights.len()];
    let rows = output
        .par_chunks_mut(tokens)
        .zip(weights.par_chunks(tokens))
        .zip(gradient.par_chunks(tokens))
        .enumerate();
    rows.with_min_len(32)
        .for_each(|(row, ((output, weights), gradient))| {
            let seen = row % tokens + 1;
            let (weights, gradient) = (&weights[..seen], &gradient[..seen]);
            let mean = weights
                .iter()
                .zip(gradient)
                .fold(T::zero(), |sum, (&weight, &gradient)| {
                    sum + weight * gradient
                });
            for ((output, &weight), &gradient) in output.iter_mut().zip(weights).zip(gradient) {
                *output = weight * (gradient - mean) * scale;
            }
        });
    output
}
