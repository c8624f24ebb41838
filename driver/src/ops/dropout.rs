//! Dropout that is repeated instead of saved.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use rand::{RngCore, SeedableRng};

use crate::random::Random;

/// The dropout of one tensor in one forward pass. The same elements drop out whenever it is asked, so that nothing need
/// be saved for the backward pass.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// How many of [`Self::PARTS`] equal parts of all elements drop out.
    dropped: u16,
    /// One for each sequence, so that what drops out of it does not depend on what is in the batch beside it.
    seeds: Arc<[u64]>,
    /// Number of the layer, which tells its random numbers from those of others.
    stream: u64,
}

impl Dropout {
    /// A share that drops out is rounded to a multiple of one over this.
    const PARTS: u32 = 1 << 16;

    /// Describes the dropout of a share of all elements, below 1, where the sequences of a batch have these seeds. Returns
    /// `None` where nothing drops out.
    pub fn new(share: f64, seeds: &Arc<[u64]>, stream: u64) -> Option<Self> {
        let dropped = (share * f64::from(Self::PARTS)).round() as u16;
        (dropped > 0).then(|| Self {
            dropped,
            seeds: seeds.clone(),
            stream,
        })
    }

    /// Returns the factor of each element of `x [sequences, ..]`, in the shape, type and device of `x`: 0 for those that
    /// drop out, and for the others so much more than 1 that the mean stays.
    pub fn factors(&self, x: &Tensor) -> Result<Tensor> {
        let share = f64::from(self.dropped) / f64::from(Self::PARTS);
        let kept = (1.0 - share).recip();
        let mut factors = vec![0f64; x.elem_count()];
        let sequence = factors.len() / self.seeds.len().max(1);
        for (sequence, &seed) in factors.chunks_mut(sequence.max(1)).zip(&*self.seeds) {
            let mut random = Random::seed_from_u64(seed);
            random.set_stream(self.stream);
            for pair in sequence.chunks_mut(2) {
                let bits = random.next_u32();
                for (factor, bits) in pair.iter_mut().zip([bits as u16, (bits >> 16) as u16]) {
                    if bits >= self.dropped {
                        *factor = kept;
                    }
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

    fn factors(seeds: &[u64], stream: u64, count: usize) -> Vec<f64> {
        let ones = Tensor::ones(count, DType::F64, &Device::Cpu).unwrap();
        let dropout = Dropout::new(0.2, &seeds.into(), stream).unwrap();
        dropout.factors(&ones).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn dropout_is_repeatable_keeps_the_mean_and_differs_by_seed_and_layer() {
        const COUNT: usize = 100_001;
        let kept = factors(&[1], 2, COUNT);
        assert_eq!(kept, factors(&[1], 2, COUNT));
        assert_ne!(kept, factors(&[2], 2, COUNT));
        assert_ne!(kept, factors(&[1], 3, COUNT));
        let share = kept.iter().filter(|&&value| value == 0.0).count() as f64 / COUNT as f64;
        let mean = kept.iter().sum::<f64>() / COUNT as f64;
        assert!((share - 0.2).abs() < 5e-3, "{share} dropped out");
        assert!((mean - 1.0).abs() < 7e-3, "the mean is {mean}");
        assert!(Dropout::new(0.0, &[1].into(), 2).is_none());
    }

    #[test]
    fn what_drops_out_of_a_sequence_does_not_depend_on_its_batch_or_its_padding() {
        let alone = factors(&[7], 3, 50);
        let padded = factors(&[5, 7], 3, 160);
        assert_eq!(alone, padded[80..130]);
        assert_ne!(padded[..80], padded[80..]);
        assert!(factors(&[], 3, 0).is_empty());
    }
}
