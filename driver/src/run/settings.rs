//! What a training run is told: options of the command line, and part of its checkpoint.

use anyhow::{Result, anyhow, bail, ensure};
use candle_trie::{
    AdaptiveStrategy, Bear, Error, MaskedSoftmaxLoss, Scope, Temperature, TokenSets, TokenTrie,
};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::model::{EndTokens, LlamaConfig};

/// Which loss a model is trained with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// The plain language-model loss: a softmax over the whole vocabulary.
    Lml,
    /// The masked softmax loss at a fixed temperature.
    Msl,
    /// The masked softmax loss with the adaptive temperature strategy.
    #[default]
    Ats,
    /// The masked softmax loss at a fixed temperature, with BEAR's weights for targets that beam search keeps.
    Bear,
    /// The same with the adaptive temperature strategy.
    #[serde(rename = "bear-ats")]
    BearAts,
}

impl LossKind {
    /// Whether the trie masks the softmax.
    pub fn is_masked(self) -> bool {
        self != Self::Lml
    }

    /// Whether the temperature follows the logits.
    pub fn is_adaptive(self) -> bool {
        matches!(self, Self::Ats | Self::BearAts)
    }

    /// Whether BEAR weighs the rows.
    pub fn has_bear(self) -> bool {
        matches!(self, Self::Bear | Self::BearAts)
    }
}

/// Which rows the adaptive temperature looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StatisticsScope {
    /// Those at the root of the trie, pooled, as published.
    #[default]
    Root,
    /// All that have more than one token to choose from, each centred on its own mean.
    Branching,
}

/// The loss and its temperature.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossSettings {
    /// The loss to train with
    #[arg(long, value_enum, default_value = "ats")]
    pub loss: LossKind,

    /// The fixed temperature of lml, msl and bear [default: 1]
    #[arg(long, value_name = "τ", value_parser = finite)]
    pub temperature: Option<f64>,

    /// η: the probability that ats gives the average target [default: 0.25]
    #[arg(long, value_name = "η", value_parser = parse_eta)]
    pub eta: Option<f64>,

    /// α: how far the temperature of ats moves in a step [default: 0.05]
    #[arg(long, value_name = "α", value_parser = finite)]
    pub alpha: Option<f64>,

    /// The smallest and the largest temperature that ats may aim at [default: 1.5 5]
    #[arg(long, num_args = 2, value_names = ["MINIMUM", "MAXIMUM"], value_parser = finite)]
    pub clamp: Option<Vec<f64>>,

    /// The temperature that ats starts from [default: 1.5]
    #[arg(long, value_name = "τ", value_parser = finite)]
    pub initial_temperature: Option<f64>,

    /// Steps before the temperature of ats begins to move [default: 0]
    #[arg(long, value_name = "STEPS")]
    pub temperature_warm_up: Option<u64>,

    /// The rows that ats looks at, and whose statistics metrics.jsonl has with every loss. The published root scope is not defined where η times the number of first tokens is
    /// at most 1; branching is, unless `msl inspect` says that it may stand still
    #[arg(long, value_enum, default_value = "root")]
    pub scope: StatisticsScope,

    /// Use the published arithmetic of the root scope even where it is not defined
    #[arg(long)]
    pub allow_degenerate: bool,

    /// B of bear and bear-ats: a target weighs the more, the farther it is above the B-th token. The number of beams
    /// that the model will be decoded with [default: 10]
    #[arg(long, value_name = "BEAMS", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(default)]
    pub bear_beams: Option<u32>,

    /// λ of bear and bear-ats: how much more than 1 a target can weigh [default: 0.25]
    #[arg(long, value_name = "λ", value_parser = finite)]
    #[serde(default)]
    pub bear_lambda: Option<f64>,

    /// ξ of bear and bear-ats: over how many nats around the B-th token the weight rises [default: 2.75]
    #[arg(long, value_name = "ξ", value_parser = finite)]
    #[serde(default)]
    pub bear_xi: Option<f64>,
}

/// η, as `--eta` takes it.
pub fn parse_eta(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(eta) if eta > 0.0 && eta <= 1.0 => Ok(eta),
        _ => Err("expected a number above 0 and at most 1".into()),
    }
}

/// A number as options take it: one that can be written down in JSON and read back.
pub fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(number) => Err(format!("expected a finite number, not {number}")),
        Err(error) => Err(error.to_string()),
    }
}

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
    #[arg(long, default_value_t = 10)]
    pub epochs: usize,

    /// Rows in a step of the optimizer
    #[arg(long, default_value_t = 128, value_name = "ROWS")]
    pub batch_size: usize,

    /// Rows that are in memory at once: a batch of more is worked through piece by piece. The gradient is the same,
    /// but ats can then only use the temperature that the step before has led to [default: the whole batch; 4 of a
    /// pretrained model]
    #[arg(long, value_name = "ROWS")]
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

/// Which steps of a training are kept.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSettings {
    /// Save a checkpoint, and look at the validation rows, every so many steps [default: once an epoch]
    #[arg(long, value_name = "STEPS")]
    pub save_every: Option<usize>,

    /// End the training when the validation rows got no better in so many looks at them [default: never]
    #[arg(long, value_name = "LOOKS")]
    pub patience: Option<usize>,
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
        let fixed = Temperature::fixed(self.temperature.unwrap_or(1.0));
        let loss = match self.loss {
            LossKind::Lml => {
                let everything = TokenSets::whole_vocabulary(vocabulary)?;
                MaskedSoftmaxLoss::new(everything, fixed)?
            }
            LossKind::Msl | LossKind::Bear => MaskedSoftmaxLoss::new(trie, fixed)?,
            LossKind::Ats | LossKind::BearAts => self.adaptive(trie)?,
        };
        Ok(match self.bear() {
            Some(bear) => loss.with_bear(bear)?,
            None => loss,
        })
    }

    /// The row weights, where the loss has some.
    fn bear(&self) -> Option<Bear> {
        let defaults = Bear::default();
        (self.loss.has_bear()).then(|| Bear {
            beams: self.bear_beams.unwrap_or(defaults.beams),
            lambda: self.bear_lambda.unwrap_or(defaults.lambda),
            xi: self.bear_xi.unwrap_or(defaults.xi),
        })
    }

    /// The same with the settings of the temperature and of the row weights written out, for a run to keep.
    pub fn with_defaults(mut self) -> Self {
        let defaults = AdaptiveStrategy::default();
        if self.loss.is_adaptive() {
            self.eta.get_or_insert(defaults.eta);
            self.alpha.get_or_insert(defaults.alpha);
            (self.clamp).get_or_insert_with(|| vec![defaults.minimum, defaults.maximum]);
            self.initial_temperature.get_or_insert(defaults.initial);
            self.temperature_warm_up.get_or_insert(defaults.warm_up);
        }
        if let Some(bear) = self.bear() {
            self.bear_beams = Some(bear.beams);
            self.bear_lambda = Some(bear.lambda);
            self.bear_xi = Some(bear.xi);
        }
        self
    }

    /// Refuses options of other losses than the one that is asked for.
    pub fn check(&self) -> Result<()> {
        ensure!(
            !self.loss.is_adaptive() || self.temperature.is_none(),
            "--temperature is the fixed one of --loss lml, --loss msl and --loss bear: that of ats and bear-ats begins \
             at --initial-temperature"
        );
        let adaptive = [
            ("--eta", self.eta.is_some()),
            ("--alpha", self.alpha.is_some()),
            ("--clamp", self.clamp.is_some()),
            ("--initial-temperature", self.initial_temperature.is_some()),
            ("--temperature-warm-up", self.temperature_warm_up.is_some()),
            ("--allow-degenerate", self.allow_degenerate),
        ];
        if let Some((option, _)) = adaptive.into_iter().find(|(_, given)| *given) {
            ensure!(
                self.loss.is_adaptive(),
                "{option} is for the temperature of --loss ats and --loss bear-ats: that of the others is --temperature"
            );
        }
        ensure!(
            self.scope == StatisticsScope::Root || !self.allow_degenerate,
            "--allow-degenerate is for --scope root: the branching scope needs no such thing"
        );
        let numbers = [self.bear_lambda, self.bear_xi];
        let asked_for = self.bear_beams.is_some() || numbers.iter().any(Option::is_some);
        ensure!(
            self.loss.has_bear() || !asked_for,
            "--bear-beams, --bear-lambda and --bear-xi are for --loss bear and --loss bear-ats"
        );
        Ok(())
    }

    fn adaptive(&self, trie: &TokenTrie) -> Result<MaskedSoftmaxLoss> {
        let strategy = self.strategy()?;
        let fan_out = trie.children(trie.root()).len();
        let odds = strategy.eta * fan_out as f64;
        if self.scope == StatisticsScope::Root && odds > 1.0 && odds < 2.0 {
            eprintln!(
                "warning: η·n = {} × {fan_out} = {odds}, so close to 1 that the temperature will sit at a clamp; \
                 consider --scope branching",
                strategy.eta
            );
        }
        MaskedSoftmaxLoss::new(trie, strategy).map_err(|error| match error {
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
        let defaults = AdaptiveStrategy::default();
        let (minimum, maximum) = match self.clamp.as_deref() {
            None => (defaults.minimum, defaults.maximum),
            Some(&[minimum, maximum]) => (minimum, maximum),
            Some(_) => bail!("expected two clamps, the smallest and the largest temperature"),
        };
        Ok(AdaptiveStrategy {
            eta: self.eta.unwrap_or(defaults.eta),
            alpha: self.alpha.unwrap_or(defaults.alpha),
            minimum,
            maximum,
            initial: self.initial_temperature.unwrap_or(defaults.initial),
            warm_up: self.temperature_warm_up.unwrap_or(defaults.warm_up),
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
        ensure!(self.micro_batch_size != Some(0), "--micro-batch-size is 0");
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
