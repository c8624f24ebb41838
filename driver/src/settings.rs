//! What a training run is told: options of the command line, and part of its checkpoint.

use anyhow::{Result, anyhow, ensure};
use candle_trie::{
    AdaptiveStrategy, Error, MaskedSoftmaxLoss, Scope, Temperature, TokenSets, TokenTrie,
};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::model::{EndTokens, LlamaConfig};

/// Which loss a model is trained with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// The plain language-model loss: a softmax over the whole vocabulary.
    Lml,
    /// The masked softmax loss at a fixed temperature.
    Msl,
    /// The masked softmax loss with the adaptive temperature strategy.
    Ats,
}

/// Which rows the adaptive temperature looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StatisticsScope {
    /// Those at the root of the trie, pooled, as published.
    Root,
    /// All that have more than one token to choose from, each centred on its own mean.
    Branching,
}

/// The loss and its temperature.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossSettings {
    /// The loss to train with
    #[arg(long, value_enum, default_value = "ats")]
    pub loss: LossKind,

    /// The fixed temperature of lml and msl
    #[arg(long, default_value_t = 1.0, value_name = "τ")]
    pub temperature: f64,

    /// η: the probability that ats gives the average target
    #[arg(long, default_value_t = 0.25, value_name = "η")]
    pub eta: f64,

    /// α: how far the temperature of ats moves in a step
    #[arg(long, default_value_t = 0.05, value_name = "α")]
    pub alpha: f64,

    /// The smallest and the largest temperature that ats may aim at
    #[arg(long, num_args = 2, value_names = ["MINIMUM", "MAXIMUM"], default_values_t = [1.5, 5.0])]
    pub clamp: Vec<f64>,

    /// The temperature that ats starts from
    #[arg(long, default_value_t = 1.5, value_name = "τ")]
    pub initial_temperature: f64,

    /// Steps before the temperature of ats begins to move
    #[arg(long, default_value_t = 0, value_name = "STEPS")]
    pub temperature_warm_up: u64,

    /// The rows that ats looks at. The published root scope is not defined where η times the number of first tokens is
    /// at most 1; branching always is
    #[arg(long, value_enum, default_value = "root")]
    pub scope: StatisticsScope,

    /// Use the published arithmetic of the root scope even where it is not defined
    #[arg(long)]
    pub allow_degenerate: bool,
}

/// How the training goes.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingSettings {
    /// Passes over the training rows
    #[arg(long, default_value_t = 10)]
    pub epochs: usize,

    /// Rows in a step
    #[arg(long, default_value_t = 128)]
    pub batch_size: usize,

    /// The highest learning rate, from which it falls linearly to 0. (The paper tunes adapters of a pretrained model at
    /// 1e-4; weights that start from nothing need more)
    #[arg(long, default_value_t = 3e-3)]
    pub learning_rate: f64,

    /// Steps over which the learning rate rises, at most a tenth of all
    #[arg(long, default_value_t = 20, value_name = "STEPS")]
    pub learning_rate_warm_up: usize,

    /// The largest norm of a gradient; a longer one is shortened to it
    #[arg(long, default_value_t = 1.0, value_name = "NORM")]
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

/// The sizes of a model that is trained from scratch.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSettings {
    /// Width of the model
    #[arg(long, default_value_t = 128, value_name = "WIDTH")]
    pub hidden: usize,

    /// Width inside the feed-forward blocks
    #[arg(long, default_value_t = 256, value_name = "WIDTH")]
    pub intermediate: usize,

    /// Layers
    #[arg(long, default_value_t = 2)]
    pub layers: usize,

    /// Attention heads
    #[arg(long, default_value_t = 4)]
    pub heads: usize,

    /// Key and value heads, each shared by as many of the heads
    #[arg(long, default_value_t = 2, value_name = "HEADS")]
    pub key_value_heads: usize,
}

impl LossSettings {
    /// The loss that these settings ask for.
    pub fn build(&self, trie: &TokenTrie, vocabulary: usize) -> Result<MaskedSoftmaxLoss> {
        let loss = match self.loss {
            LossKind::Lml => {
                let everything = TokenSets::whole_vocabulary(vocabulary)?;
                MaskedSoftmaxLoss::new(everything, Temperature::fixed(self.temperature))?
            }
            LossKind::Msl => MaskedSoftmaxLoss::new(trie, Temperature::fixed(self.temperature))?,
            LossKind::Ats => self.adaptive(trie)?,
        };
        Ok(loss)
    }

    fn adaptive(&self, trie: &TokenTrie) -> Result<MaskedSoftmaxLoss> {
        let fan_out = trie.children(trie.root()).len();
        let odds = self.eta * fan_out as f64;
        if self.scope == StatisticsScope::Root && odds > 1.0 && odds < 2.0 {
            eprintln!(
                "warning: η·n = {} × {fan_out} = {odds}, so close to 1 that the temperature will sit at a clamp; \
                 consider --scope branching",
                self.eta
            );
        }
        MaskedSoftmaxLoss::new(trie, self.strategy()?).map_err(|error| match error {
            Error::DegenerateScope { eta, fan_out } => anyhow!(
                "ats is not defined in the root scope of this catalogue and tokenizer: titles begin with {fan_out} \
                 different tokens, and η·n = {eta} × {fan_out} = {odds} must be above 1. Use --scope branching, raise \
                 --eta above {}, or take the published arithmetic as it is with --allow-degenerate",
                1.0 / f64::from(fan_out)
            ),
            error => error.into(),
        })
    }

    /// A loss over the trie that only serves to look at the statistics which ats would see.
    pub fn observer(&self, trie: &TokenTrie) -> Result<MaskedSoftmaxLoss> {
        let strategy = AdaptiveStrategy {
            allow_degenerate: true,
            ..self.strategy()?
        };
        Ok(MaskedSoftmaxLoss::new(trie, strategy)?)
    }

    fn strategy(&self) -> Result<AdaptiveStrategy> {
        ensure!(
            self.clamp.len() == 2,
            "expected two clamps, the smallest and the largest temperature"
        );
        Ok(AdaptiveStrategy {
            eta: self.eta,
            alpha: self.alpha,
            minimum: self.clamp[0],
            maximum: self.clamp[1],
            initial: self.initial_temperature,
            warm_up: self.temperature_warm_up,
            scope: match self.scope {
                StatisticsScope::Root => Scope::Root,
                StatisticsScope::Branching => Scope::Branching,
            },
            allow_degenerate: self.allow_degenerate,
        })
    }
}

impl TrainingSettings {
    /// Refuses settings with which nothing can be trained.
    pub fn check(&self) -> Result<()> {
        ensure!(self.epochs > 0, "--epochs is 0");
        ensure!(self.batch_size > 0, "--batch-size is 0");
        ensure!(
            self.learning_rate > 0.0 && self.learning_rate.is_finite(),
            "--learning-rate is {}, expected a positive number",
            self.learning_rate
        );
        ensure!(
            self.clip > 0.0,
            "--clip is {}, expected a positive number",
            self.clip
        );
        Ok(())
    }

    /// The learning rate of a step: up over the warm-up, then down to 0, both linearly.
    pub fn learning_rate_at(&self, step: usize, steps: usize) -> f64 {
        let warm_up = self.learning_rate_warm_up.min(steps / 10);
        let share = if step < warm_up {
            (step + 1) as f64 / warm_up as f64
        } else {
            (steps - step) as f64 / (steps - warm_up) as f64
        };
        self.learning_rate * share
    }
}

impl ModelSettings {
    /// The configuration of such a model for a tokenizer.
    pub fn config(&self, vocabulary: usize, end_token: u32) -> LlamaConfig {
        LlamaConfig {
            vocab_size: vocabulary,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: Some(self.key_value_heads),
            eos_token_id: Some(EndTokens::One(end_token)),
            ..LlamaConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let settings = TrainingSettings {
            epochs: 1,
            batch_size: 1,
            learning_rate: 1.0,
            learning_rate_warm_up: 20,
            clip: 1.0,
            seed: 0,
            dense: false,
            read_unary_tail: false,
        };
        let rates: Vec<f64> = (0..40)
            .map(|step| settings.learning_rate_at(step, 40))
            .collect();
        assert_eq!((rates[0], rates[3], rates[4]), (0.25, 1.0, 1.0));
        assert!(rates[4..].windows(2).all(|pair| pair[1] < pair[0]) && rates[39] > 0.0);
        assert_eq!(settings.learning_rate_at(0, 1), 1.0);
    }
}
