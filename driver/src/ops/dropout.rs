//! Dropout that is repeated instead of saved.

use candle_core::{Device, Result, Tensor};
use rand::{RngCore, SeedableRng};

use crate::random::Random;

/// The dropout of one tensor in one forward pass. The same elements drop out whenever it is asked, so that nothing need
/// be saved for the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// How many of [`Self::PARTS`] equal parts of all elements drop out.
    dropped: u16,
    /// Seed of the forward pass.
    seed: u64,
    /// Number of the layer, which tells its random numbers from those of others.
    stream: u64,
}

impl Dropout {
    /// A share that drops out is rounded to a multiple of one over this.
    const PARTS: u32 = 1 << 16;

    /// Describes the dropout of a share of all elements, below 1. Returns `None` where nothing drops out.
    pub fn new(share: f64, seed: u64, stream: u64) -> Option<Self> {
        let dropped = (share * f64::from(Self::PARTS)).round() as u16;
        (dropped > 0).then_some(Self {
            dropped,
            seed,
            stream,
        })
    }

    /// Returns the factor of each element of `x`, in the shape, type and device of `x`: 0 for those that drop out, and
    /// for the others so much more than 1 that the mean stays.
    pub fn factors(self, x: &Tensor) -> Result<Tensor> {
        let mut random = Random::seed_from_u64(self.seed);
        random.set_stream(self.stream);
        let share = f64::from(self.dropped) / f64::from(Self::PARTS);
        let kept = (1.0 - share).recip();
        let mut factors = vec![0f64; x.elem_count()];
        for pair in factors.chunks_mut(2) {
            let bits = random.next_u32();
            for (factor, bits) in pair.iter_mut().zip([bits as u16, (bits >> 16) as u16]) {
                if bits >= self.dropped {
                    *factor = kept;
                }
            }
        }
        Tensor::from_vec(factors, x.shape(), &Device::Cpu)?
            .to_dtype(x.dtype())?
            .to_device(x.device())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn dropout_is_repeatable_keeps_the_mean_and_differs_by_seed_and_layer() {
        let ones = Tensor::ones(100_001, DType::F64, &Device::Cpu).unwrap();
        let factors = |seed, stream| -> Vec<f64> {
            let dropout = Dropout::new(0.2, seed, stream).unwrap();
            dropout.factors(&ones).unwrap().to_vec1().unwrap()
        };
        let kept = factors(1, 2);
        assert_eq!(kept, factors(1, 2));
        assert_ne!(kept, factors(2, 2));
        assert_ne!(kept, factors(1, 3));
        let share = kept.iter().filter(|&&value| value == 0.0).count() as f64 / kept.len() as f64;
        let mean = kept.iter().sum::<f64>() / kept.len() as f64;
        assert!((share - 0.2).abs() < 5e-3, "{share} dropped out");
        assert!((mean - 1.0).abs() < 7e-3, "the mean is {mean}");
        assert!(Dropout::new(0.0, 1, 2).is_none());
    }
}
