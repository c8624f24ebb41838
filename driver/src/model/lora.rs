//! Low-rank adapters (LoRA): what is trained of a model whose own weights are frozen.

use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_core::{Tensor, Var};
use clap::Args;
use rand::{Rng, RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use super::{
    composed::wide_dtype,
    elements::{Element, constant},
    parameters::values,
};
use crate::{console::finite, random::Random};

/// More than the width of any layer; memory for more is promised by the system and not there.
const MOST_RANK: usize = 1 << 16;

/// The linear layers that an adapter can stand beside, by their Hugging Face names.
pub const TARGETS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// Size and place of the adapters.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSettings {
    /// Rank of the adapters of a pretrained model
    #[arg(
        id = "lora_rank",
        long = "lora-rank",
        default_value_t = 8,
        value_name = "RANK"
    )]
    pub rank: usize,

    /// α of the adapters: what they add is scaled by α divided by the rank
    #[arg(
        id = "lora_alpha",
        long = "lora-alpha",
        default_value_t = 16.0,
        value_name = "α",
        value_parser = finite
    )]
    pub alpha: f64,

    /// The share of an adapter's inputs that drop out in training
    #[arg(
        id = "lora_dropout",
        long = "lora-dropout",
        default_value_t = 0.0,
        value_name = "SHARE",
        value_parser = finite
    )]
    pub dropout: f64,

    /// The linear layers that get adapters, separated by spaces or commas: q_proj, k_proj, v_proj, o_proj, gate_proj,
    /// up_proj and down_proj
    #[arg(
        id = "lora_targets",
        long = "lora-targets",
        value_name = "NAME",
        num_args = 1..,
        default_values_t = ["q_proj".to_string(), "v_proj".to_string()]
    )]
    pub targets: Vec<String>,
}

impl Default for LoraSettings {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: vec!["q_proj".into(), "v_proj".into()],
        }
    }
}

impl LoraSettings {
    /// What an adapter's output is multiplied by.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// The same, with every name of a layer by itself where several were written as one, as in `q_proj,v_proj`.
    pub fn with_separate_targets(mut self) -> Self {
        let mut targets = Vec::new();
        for name in (self.targets.iter()).flat_map(|names| names.split([',', ' '])) {
            if !name.is_empty() && !targets.iter().any(|other| other == name) {
                targets.push(name.to_owned());
            }
        }
        self.targets = targets;
        self
    }

    /// Whether a layer gets an adapter: PEFT's rule, by which a target is a whole path or its end.
    pub fn wants(&self, path: &str) -> bool {
        self.targets.iter().any(|target| is_end_of(target, path))
    }

    /// Refuses settings that no adapter can have.
    pub fn check(&self) -> Result<()> {
        ensure!(self.rank > 0, "the rank of the adapters is 0");
        ensure!(
            self.rank <= MOST_RANK,
            "the rank of the adapters is {}, expected at most {MOST_RANK}",
            self.rank
        );
        ensure!(
            self.alpha.is_finite(),
            "α of the adapters is {}, expected a number",
            self.alpha
        );
        ensure!(
            (0.0..1.0).contains(&self.dropout),
            "the adapters' dropout is {}, expected a share below 1",
            self.dropout
        );
        ensure!(!self.targets.is_empty(), "no layer is to get an adapter");
        for target in &self.targets {
            let name = target.rsplit('.').next().unwrap_or(target);
            ensure!(
                TARGETS.contains(&name),
                "there is no linear layer {target}: adapters stand beside {}",
                TARGETS.join(", ")
            );
        }
        Ok(())
    }
}

/// Whether a name is a path of modules, or its last parts.
pub fn is_end_of(name: &str, path: &str) -> bool {
    (path.strip_suffix(name)).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// One adapter: `scale · x · downᵀ · upᵀ` is added to what its linear layer gives.
pub struct Adapter {
    /// `[rank, in]`, PEFT's `lora_A`.
    pub down: Var,
    /// `[out, rank]`, PEFT's `lora_B`.
    pub up: Var,
    pub scale: f64,
    dropout: f64,
    /// Tells this adapter's noise from the others'.
    stream: u64,
}

impl Adapter {
    /// An adapter that changes nothing yet: PEFT's first weights. It is in f32 also where `like`, a weight of the
    /// model, has fewer digits: small steps would be lost in them.
    pub fn new(
        settings: &LoraSettings,
        like: &Tensor,
        (out, width): (usize, usize),
        stream: u64,
        random: &mut Random,
    ) -> Result<Self> {
        let bound = 1.0 / (width as f64).sqrt();
        let shape = [settings.rank, width];
        let down = values("an adapter", &shape, || random.random_range(-bound..bound))?;
        let down = Tensor::from_vec(down, &shape, like.device())?;
        let dtype = wide_dtype(like.dtype());
        Ok(Self {
            down: Var::from_tensor(&down.to_dtype(dtype)?)?,
            up: Var::zeros((out, settings.rank), dtype, like.device())?,
            scale: settings.scale(),
            dropout: settings.dropout,
            stream,
        })
    }

    /// Returns what drops out where the sequences of a batch have these seeds.
    pub fn dropout(&self, seeds: &Arc<[u64]>) -> Option<Dropout> {
        let dropped = (self.dropout * f64::from(DROPOUT_STEPS)).round() as u16;
        (dropped > 0).then_some(Dropout {
            dropped,
            seeds: seeds.clone(),
            stream: self.stream,
        })
    }
}

/// The share that drops out is a multiple of one over this.
const DROPOUT_STEPS: u32 = 1 << 16;

/// Which elements drop out: the same whenever it is asked, so that nothing need be kept for the way back.
pub struct Dropout {
    dropped: u16,
    /// One for each sequence, so that what drops out of it does not depend on what is in the batch beside it.
    seeds: Arc<[u64]>,
    stream: u64,
}

impl Dropout {
    /// The values, those that stay enlarged so that the mean stays.
    pub fn apply<T: Element>(&self, values: &[T]) -> Vec<T> {
        let mut output = values.to_vec();
        self.apply_in_place(&mut output);
        output
    }

    /// As [`apply`](Self::apply).
    pub fn apply_in_place<T: Element>(&self, values: &mut [T]) {
        let share = f64::from(self.dropped) / f64::from(DROPOUT_STEPS);
        let enlarged = constant::<T>((1.0 - share).recip());
        let sequence = values.len() / self.seeds.len().max(1);
        let sequences = values.chunks_mut(sequence.max(1));
        for (sequence, &seed) in sequences.zip(&*self.seeds) {
            let mut random = Random::seed_from_u64(seed);
            random.set_stream(self.stream);
            for pair in sequence.chunks_mut(2) {
                let bits = random.next_u32();
                for (value, bits) in pair.iter_mut().zip([bits as u16, (bits >> 16) as u16]) {
                    let stays = bits >= self.dropped;
                    *value = if stays { *value * enlarged } else { T::zero() };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_is_repeatable_keeps_the_mean_and_differs_by_seed_and_adapter() {
        let dropout = |seed, stream| Dropout {
            dropped: 13_107,
            seeds: [seed].into(),
            stream,
        }; // a fifth
        let ones = vec![1f64; 100_001];
        let kept = dropout(1, 2).apply(&ones);
        assert_eq!(kept, dropout(1, 2).apply(&ones));
        assert_ne!(kept, dropout(2, 2).apply(&ones));
        assert_ne!(kept, dropout(1, 3).apply(&ones));
        let share = kept.iter().filter(|&&value| value == 0.0).count() as f64 / ones.len() as f64;
        let mean = kept.iter().sum::<f64>() / ones.len() as f64;
        assert!((share - 0.2).abs() < 5e-3, "{share} dropped out");
        assert!((mean - 1.0).abs() < 7e-3, "the mean is {mean}");
    }

    #[test]
    fn what_drops_out_of_a_sequence_does_not_depend_on_its_batch_or_its_padding() {
        let dropped = |seeds: &[u64], values: &[f64]| {
            let seeds = seeds.into();
            let dropout = Dropout {
                dropped: 13_107,
                seeds,
                stream: 3,
            };
            dropout.apply(values)
        };
        let alone = dropped(&[7], &[1.0; 50]);
        let padded = dropped(&[5, 7], &[1.0; 160]);
        assert_eq!(alone, padded[80..130]);
        assert_ne!(padded[..80], padded[80..]);
        assert!(dropped(&[], &[]).is_empty());
    }
}
