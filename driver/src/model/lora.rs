//! Low-rank adapters (LoRA): what is trained of a model whose own weights are frozen.

use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_core::{Tensor, Var};
use clap::Args;
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::parameters::values;
use crate::{
    console::finite,
    ops::{Dropout, LowRank, accumulator_dtype},
    random::Random,
};

/// The largest rank: more than the width of any layer. The system would promise memory for more without having it.
const MOST_RANK: usize = 1 << 16;

/// The Hugging Face names of the linear layers that an adapter can stand beside.
pub const TARGETS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// The settings of the adapters: their size, and the layers that have them.
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
    /// Returns the factor of an adapter's output.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Returns the same settings with every layer's name by itself, where several were written as one, as in
    /// `q_proj,v_proj`.
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

    /// Tells whether a layer gets an adapter, by PEFT's rule: a target is a layer's whole path or the end of it.
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

/// Tells whether a name is a path of modules, or the last parts of it.
pub fn is_end_of(name: &str, path: &str) -> bool {
    (path.strip_suffix(name)).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// An adapter: it adds `scale · x · downᵀ · upᵀ` to the output of its linear layer.
pub struct Adapter {
    /// `[rank, in]`, PEFT's `lora_A`.
    pub down: Var,
    /// `[out, rank]`, PEFT's `lora_B`.
    pub up: Var,
    /// The factor of what is added.
    pub scale: f64,
    /// The share of the elements of `x` that drops out in training, below 1.
    dropout: f64,
    /// The number of the adapter, which tells its random numbers from those of others.
    stream: u64,
}

impl Adapter {
    /// Makes an adapter for a layer of the shape `[out, in]` that changes nothing yet, with PEFT's initial weights. `like` is
    /// a weight of the model. The adapter is in f32 also beside weights in f16 or bf16, where small steps would be lost to
    /// rounding.
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
        let dtype = accumulator_dtype(like.dtype());
        Ok(Self {
            down: Var::from_tensor(&down.to_dtype(dtype)?)?,
            up: Var::zeros((out, settings.rank), dtype, like.device())?,
            scale: settings.scale(),
            dropout: settings.dropout,
            stream,
        })
    }

    /// Returns what is computed beside the layer's weight. With a seed for each sequence, its input has dropout.
    pub fn low_rank(&self, dropout_seeds: Option<&Arc<[u64]>>) -> LowRank<'_> {
        LowRank {
            down: &self.down,
            up: &self.up,
            scale: self.scale,
            dropout: dropout_seeds.and_then(|seeds| Dropout::new(self.dropout, seeds, self.stream)),
        }
    }
}
