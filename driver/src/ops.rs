//! The differentiable operations that models are built of, composed of candle's for every device and type.
//!
//! Each operation is one node of the autograd graph with a backward of its own. candle's own operations either have no
//! backward at all (`rotary_emb`, `softmax_last_dim` and others succeed, and the gradient is silently missing), or give
//! gradients to frozen weights and masks as well and save every intermediate tensor. In f16 and bf16, sums are
//! accumulated in f32 and rounded once.

mod attention;
mod cached_attention;
mod differentiable;
mod dropout;
mod embedding;
mod feed_forward;
mod fused;
mod linear;
mod rms_norm;
mod rotary;
mod softmax;
mod swiglu;

pub use attention::{KeysValues, attention, causal_mask};
pub use cached_attention::{Seen, SeenTokens, cached_attention};
pub use differentiable::{accumulator_dtype, add, differentiable};
pub use dropout::Dropout;
pub use embedding::embedding;
pub use feed_forward::{FeedForwardWeights, frozen_feed_forward};
pub use linear::{LowRank, linear, linear_with_lora};
pub use rms_norm::rms_norm;
pub use rotary::RotaryAngles;
pub use swiglu::swiglu;

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    /// Returns any values of a shape, from −1 to 1.
    pub fn wave(shape: &[usize], from: f64, dtype: DType) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f64> = (0..count)
            .map(|place| (from + place as f64).sin())
            .collect();
        let values = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        values.to_dtype(dtype).unwrap()
    }

    /// Compares two tensors up to a few roundings of their type.
    pub fn assert_close(found: &Tensor, expected: &Tensor) {
        assert_eq!(found.dims(), expected.dims());
        let bound = if found.dtype() == DType::F64 {
            1e-12
        } else {
            1e-5
        };
        let difference = (found - expected).unwrap().abs().unwrap();
        let largest = difference.max_all().unwrap().to_dtype(DType::F64).unwrap();
        let largest: f64 = largest.to_scalar().unwrap();
        assert!(largest < bound, "a difference of {largest}");
    }
}
