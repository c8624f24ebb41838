//! Options of the optimizer and its batches, which a run keeps.

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::console::{finite, positive};

/// How the learning rate goes down after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// In a line, to 0.
    Linear,
    /// Along half a wave of the cosine, to 0.
    Cosine,
    /// Not at all.
    None,
}

/// How the training goes.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingSettings {
    /// Passes over the training rows
    #[arg(long, default_value_t = 10, value_parser = positive)]
    pub epochs: usize,

    /// Rows in a step of the optimizer
    #[arg(long, default_value_t = 128, value_name = "ROWS", value_parser = positive)]
    pub batch_size: usize,

    /// Rows that are in memory at once: a batch of more is worked through piece by piece. The gradient is the same,
    /// but ats can then only use the temperature that the step before has led to [default: the whole batch; 4 of a
    /// pretrained model]
    #[arg(long, value_name = "ROWS", value_parser = positive)]
    pub micro_batch_size: Option<usize>,

    /// The highest learning rate [default: 1e-4 for adapters, as in the paper; weights that start from nothing need
    /// more, 3e-3]
    #[arg(long, value_name = "RATE", value_parser = finite)]
    pub learning_rate: Option<f64>,

    /// Steps over which the learning rate rises, at most a tenth of all
    #[arg(long, default_value_t = 20, value_name = "STEPS")]
    pub learning_rate_warm_up: usize,

    /// How the learning rate goes down after that
    #[arg(long, value_enum, default_value = "linear")]
    pub decay: Decay,

    /// The share of the learning rate by which every weight shrinks in a step
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = finite)]
    pub weight_decay: f64,

    /// The largest norm of a gradient; a longer one is shortened to it
    #[arg(long, default_value_t = 1.0, value_name = "NORM", value_parser = finite)]
    pub clip: f64,

    /// The seed of everything that is random
    #[arg(long, default_value_t = 42)]
    pub seed: u64,

    /// Make the logits of the response rows instead of going from hidden states × head to the loss: the same numbers,
    /// more slowly
    #[arg(long)]
    pub dense: bool,

    /// Let the model read the end of a response too, where the trie leaves one way to go on and msl and ats have
    /// neither loss nor gradient: the same numbers, more slowly
    #[arg(long)]
    pub read_unary_tail: bool,
}

impl TrainingSettings {
    /// Refuses settings with which nothing can be trained.
    pub fn check(&self) -> Result<()> {
        // The options are checked where they are read, and a file of settings here.
        ensure!(
            self.epochs > 0 && self.batch_size > 0 && self.micro_batch_size != Some(0),
            "expected at least one epoch, and at least one row in a batch and in a micro-batch"
        );
        ensure!(
            self.weight_decay >= 0.0 && self.weight_decay.is_finite(),
            "--weight-decay is {}, expected 0 or more",
            self.weight_decay
        );
        let learning_rate = self.learning_rate();
        ensure!(
            learning_rate > 0.0 && learning_rate.is_finite(),
            "--learning-rate is {learning_rate}, expected a positive number"
        );
        ensure!(
            self.clip > 0.0,
            "--clip is {}, expected a positive number",
            self.clip
        );
        Ok(())
    }

    /// The same, with what suits the adapters of a pretrained model where nothing else was asked for.
    pub fn for_adapters(self) -> Self {
        Self {
            learning_rate: self.learning_rate.or(Some(1e-4)),
            micro_batch_size: self.micro_batch_size.or(Some(4)),
            ..self
        }
    }

    fn learning_rate(&self) -> f64 {
        self.learning_rate.unwrap_or(3e-3)
    }

    /// Rows that are in memory at once.
    pub fn micro_batch_size(&self) -> usize {
        self.micro_batch_size
            .unwrap_or(self.batch_size)
            .min(self.batch_size)
    }

    /// The learning rate of a step: up in a line over the warm-up, then down.
    pub fn learning_rate_at(&self, step: usize, steps: usize) -> f64 {
        let warm_up = self.learning_rate_warm_up.min(steps / 10);
        if step < warm_up {
            return self.learning_rate() * (step + 1) as f64 / warm_up as f64;
        }
        let left = (steps - step) as f64 / (steps - warm_up) as f64;
        let share = match self.decay {
            Decay::Linear => left,
            Decay::Cosine => (1.0 - (std::f64::consts::PI * left).cos()) / 2.0,
            Decay::None => 1.0,
        };
        self.learning_rate() * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let settings = |decay| TrainingSettings {
            epochs: 1,
            batch_size: 1,
            micro_batch_size: None,
            learning_rate: Some(1.0),
            learning_rate_warm_up: 20,
            decay,
            weight_decay: 0.0,
            clip: 1.0,
            seed: 0,
            dense: false,
            read_unary_tail: false,
        };
        let rates = |decay| -> Vec<f64> {
            (0..40)
                .map(|step| settings(decay).learning_rate_at(step, 40))
                .collect()
        };
        for decay in [Decay::Linear, Decay::Cosine] {
            let rates = rates(decay);
            assert_eq!((rates[0], rates[3], rates[4]), (0.25, 1.0, 1.0));
            assert!(rates[4..].windows(2).all(|pair| pair[1] < pair[0]) && rates[39] > 0.0);
            assert!((rates[22] - 0.5).abs() < 1e-12, "half way down");
            assert_eq!(settings(decay).learning_rate_at(0, 1), 1.0);
        }
        assert!(rates(Decay::Cosine)[10] > rates(Decay::Linear)[10]);
        assert!(rates(Decay::None)[3..].iter().all(|&rate| rate == 1.0));
    }
}
