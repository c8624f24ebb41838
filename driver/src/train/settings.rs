//! Defines the options of the optimizer and its batches.

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::console::{finite, positive};

/// Schedules of the learning rate after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Linear, to 0.
    Linear,
    /// Along half a cosine wave, to 0.
    Cosine,
    /// Constant.
    None,
}

/// Options of the optimizer and its batches.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingSettings {
    /// Epochs of training
    #[arg(long, default_value_t = 10, value_parser = positive)]
    pub epochs: usize,

    /// Rows in a step of the optimizer
    #[arg(long, default_value_t = 128, value_name = "ROWS", value_parser = positive)]
    pub batch_size: usize,

    /// Rows in memory at once: the gradient of a larger batch is accumulated over micro-batches. It is the same
    /// gradient, but ats then uses the temperature that the step before has led to [default: the whole batch; 4 for a
    /// pretrained model]
    #[arg(long, value_name = "ROWS", value_parser = positive)]
    pub micro_batch_size: Option<usize>,

    /// The highest learning rate [default: 1e-4 for adapters, as in the paper; 3e-3 from scratch]
    #[arg(long, value_name = "RATE", value_parser = finite)]
    pub learning_rate: Option<f64>,

    /// Steps of linear warm-up of the learning rate, at most a tenth of all steps
    #[arg(long, default_value_t = 20, value_name = "STEPS")]
    pub learning_rate_warm_up: usize,

    /// The schedule of the learning rate after the warm-up
    #[arg(long, value_enum, default_value = "linear")]
    pub decay: Decay,

    /// Decoupled weight decay of AdamW
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = finite)]
    pub weight_decay: f64,

    /// The largest norm of a gradient, to which a longer one is clipped
    #[arg(long, default_value_t = 1.0, value_name = "NORM", value_parser = finite)]
    pub clip: f64,

    /// The seed of all random numbers
    #[arg(long, default_value_t = 42)]
    pub seed: u64,

    /// Materialise the logits of the response rows, in place of the logit-free loss from hidden states × head: the same
    /// numbers, more slowly
    #[arg(long)]
    pub dense: bool,

    /// Let the model also read the end of a response, where only one token can follow and masked losses have neither loss
    /// nor gradient: the same numbers, more slowly
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

    /// Fills in the defaults for adapters of a pretrained model.
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

    /// Returns the number of rows that are in memory at once.
    pub fn micro_batch_size(&self) -> usize {
        self.micro_batch_size
            .unwrap_or(self.batch_size)
            .min(self.batch_size)
    }

    /// Returns the learning rate of a step, which counts from 0: it rises linearly over the warm-up, then decays.
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
