//! Defines the options of the loss and its temperature, and builds the loss from them.

use anyhow::{Result, anyhow, bail, ensure};
use candle_trie::{
    AdaptiveStrategy, Bear, Error, MaskedSoftmaxLoss, Scope, Temperature, TokenSets, TokenTrie,
};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::console::finite;

/// Losses that a model can be trained with.
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
    /// BEAR's weights with the adaptive temperature strategy.
    #[serde(rename = "bear-ats")]
    BearAts,
}

impl LossKind {
    /// Tells whether the trie masks the softmax.
    pub fn is_masked(self) -> bool {
        self != Self::Lml
    }

    /// Tells whether the temperature follows the logits.
    pub fn is_adaptive(self) -> bool {
        matches!(self, Self::Ats | Self::BearAts)
    }

    /// Tells whether BEAR weighs the rows.
    pub fn has_bear(self) -> bool {
        matches!(self, Self::Bear | Self::BearAts)
    }
}

/// Rows whose statistics move the adaptive temperature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StatisticsScope {
    /// The rows at the root of the trie, pooled, as published.
    #[default]
    Root,
    /// All branching rows, which have more than one valid token, each centred on its own mean.
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

    /// α: the share of a step's estimate in the moving average of ats's temperature [default: 0.05]
    #[arg(long, value_name = "α", value_parser = finite)]
    pub alpha: Option<f64>,

    /// The smallest and the largest temperature of ats [default: 1.5 5]
    #[arg(long, num_args = 2, value_names = ["MINIMUM", "MAXIMUM"], value_parser = finite)]
    pub clamp: Option<Vec<f64>>,

    /// The temperature that ats starts from [default: 1.5]
    #[arg(long, value_name = "τ", value_parser = finite)]
    pub initial_temperature: Option<f64>,

    /// Steps before ats begins to change the temperature [default: 0]
    #[arg(long, value_name = "STEPS")]
    pub temperature_warm_up: Option<u64>,

    /// The rows whose statistics move the temperature of ats, and are written to metrics.jsonl under every loss. The
    /// published root scope is not defined where η times the number of first tokens is at most 1: msl inspect says
    /// whether it is
    #[arg(long, value_enum, default_value = "root")]
    pub scope: StatisticsScope,

    /// Use the published arithmetic of the root scope even where it is not defined
    #[arg(long)]
    pub allow_degenerate: bool,

    /// B of bear and bear-ats: a target has the more weight, the farther its log-probability is above that of the B-th
    /// likeliest token. Use the number of beams of the decoding [default: 10]
    #[arg(long, value_name = "BEAMS", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(default)]
    pub bear_beams: Option<u32>,

    /// λ of bear and bear-ats: the most that is added to the weight of 1 of a row [default: 0.25]
    #[arg(long, value_name = "λ", value_parser = finite)]
    #[serde(default)]
    pub bear_lambda: Option<f64>,

    /// ξ of bear and bear-ats: the width of the rise of the weight around the B-th token, in nats [default: 2.75]
    #[arg(long, value_name = "ξ", value_parser = finite)]
    #[serde(default)]
    pub bear_xi: Option<f64>,
}

/// Parses the value of `--eta`.
pub fn parse_eta(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(eta) if eta > 0.0 && eta <= 1.0 => Ok(eta),
        _ => Err("expected a number above 0 and at most 1".into()),
    }
}

impl LossSettings {
    /// Builds the loss that these settings ask for.
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

    /// Returns the row weights, where the loss has some.
    fn bear(&self) -> Option<Bear> {
        let defaults = Bear::default();
        (self.loss.has_bear()).then(|| Bear {
            beams: self.bear_beams.unwrap_or(defaults.beams),
            lambda: self.bear_lambda.unwrap_or(defaults.lambda),
            xi: self.bear_xi.unwrap_or(defaults.xi),
        })
    }

    /// Fills in the defaults of the temperature and of the row weights, for a run to keep.
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
                "warning: η·n = {} × {fan_out} = {odds}, so close to 1 that the temperature will stay at its upper bound; \
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

    /// Builds a loss that serves only to compute the statistics that would move an adaptive temperature.
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
