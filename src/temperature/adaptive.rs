//! The Adaptive Temperature Strategy.

use serde::{Deserialize, Serialize};

use super::{TemperatureState, check_temperature};
use crate::{Error, Result, Statistics};

/// A temperature that follows the logits: its strategy, and its state.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptiveTemperature {
    /// The strategy by which it follows them.
    pub strategy: AdaptiveStrategy,
    pub(super) state: TemperatureState,
}

/// The Adaptive Temperature Strategy (ATS) of arXiv 2504.04178, section 4.2.
///
/// For statistics rows with mean target logit μ⁺, mean μ and variance σ² of their valid logits, and
/// fan-out n, put Δ = μ⁺ − μ and C = ln(n·η). The estimate is the root of Δ/τ − σ²/(2τ²) = C, the
/// temperature at which the target's Gaussian-approximated probability is η:
///
/// τ̂ = (Δ + √max(Δ² − 2Cσ², 0)) / 2C, clamped to `minimum..=maximum`; then τ ← (1 − α)τ + ατ̂.
///
/// The defaults are the paper's values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdaptiveStrategy {
    /// The probability η that the target should have: above 0 and at most 1. By default 0.25.
    pub eta: f64,
    /// The share α of a new estimate in the temperature: from 0 to 1. By default 0.05.
    pub alpha: f64,
    /// The smallest value that the estimate is clamped to. By default 1.5.
    pub minimum: f64,
    /// The largest value that the estimate is clamped to. By default 5.
    pub maximum: f64,
    /// The temperature τ₀ to begin with, which is kept throughout the warm-up. By default 1.5.
    pub initial: f64,
    /// The number of steps of the warm-up: while the step, counted from 0, is below it, the temperature is τ₀. By
    /// default 0.
    pub warm_up: u64,
    /// The rows that the statistics are taken of. By default those at the root.
    pub scope: Scope,
    /// Whether, where η·n ≤ 1, the published arithmetic is computed instead of refused. By default it is refused.
    pub allow_degenerate: bool,
}

impl Default for AdaptiveStrategy {
    fn default() -> Self {
        Self {
            eta: Self::DEFAULT_ETA,
            alpha: Self::DEFAULT_ALPHA,
            minimum: Self::DEFAULT_MINIMUM,
            maximum: Self::DEFAULT_MAXIMUM,
            initial: Self::DEFAULT_INITIAL,
            warm_up: 0,
            scope: Scope::Root,
            allow_degenerate: false,
        }
    }
}

/// The rows that the statistics of ATS are taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The rows at the root (set 0) are pooled, as published.
    Root,
    /// All branching rows are taken, each centred on its own mean: Δ = mean of (z_y − m_t), σ² = mean of s_t²
    /// and C = mean of ln(n_t·η), with m_t and s_t² (unbiased) the mean and variance of row t's own
    /// valid logits. Adding a constant to a row changes nothing, as in the loss itself. A batch with
    /// C ≤ 0 leaves the temperature as it was.
    Branching,
    /// The rows that the caller marks ([`Rows::with_marks`](crate::Rows::with_marks)) are pooled. Their sets must have
    /// one size.
    Marked,
}

impl Scope {
    /// Returns the scope's name in messages and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Branching => "branching",
            Self::Marked => "marked",
        }
    }
}

/// The effect of the next step of an adaptive temperature, as far as the sizes of the statistics' sets decide it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Course {
    /// The temperature is τ₀.
    Starts,
    /// The temperature stays what it is.
    Stays,
    /// The temperature follows the logits, with this C.
    Follows { log_odds: f64 },
}

impl AdaptiveTemperature {
    /// Returns τ as it stands.
    pub(crate) fn value(&self) -> f64 {
        self.state.value
    }

    /// Returns the effect of the next step with statistics whose rows and sizes are these.
    pub(crate) fn course(&self, sizes: &Statistics) -> Result<Course> {
        let log_odds = self.strategy.log_odds(sizes)?;
        Ok(match log_odds {
            _ if self.state.step < self.strategy.warm_up => Course::Starts,
            Some(log_odds) => Course::Follows { log_odds },
            None => Course::Stays,
        })
    }

    pub(super) fn step(&mut self, statistics: &Statistics, step: u64) -> Result<f64> {
        check_temperature("temperature", self.state.value)?;
        let estimate = self.strategy.estimate(statistics)?;
        self.state.step = step.saturating_add(1);
        if step < self.strategy.warm_up {
            self.state.value = self.strategy.initial;
        } else if let Some(estimate) = estimate {
            let alpha = self.strategy.alpha;
            self.state.value = (1.0 - alpha) * self.state.value + alpha * estimate;
        }
        Ok(self.state.value)
    }
}

impl AdaptiveStrategy {
    /// The paper's η, the probability that the target should have.
    pub const DEFAULT_ETA: f64 = 0.25;
    /// The paper's α, the share of a new estimate in the temperature.
    pub const DEFAULT_ALPHA: f64 = 0.05;
    /// The smallest value that the paper clamps the estimate to.
    pub const DEFAULT_MINIMUM: f64 = 1.5;
    /// The largest value that the paper clamps the estimate to.
    pub const DEFAULT_MAXIMUM: f64 = 5.0;
    /// The paper's τ₀, the temperature to begin with.
    pub const DEFAULT_INITIAL: f64 = 1.5;

    /// Returns the clamped estimate τ̂, or `None` where the statistics give none.
    ///
    /// # Errors
    /// Those of [`Temperature::step`](crate::Temperature::step).
    pub fn estimate(&self, statistics: &Statistics) -> Result<Option<f64>> {
        let Some(log_odds) = self.log_odds(statistics)? else {
            return Ok(None);
        };
        let (delta, variance) = match self.scope {
            Scope::Root | Scope::Marked => (
                statistics.target_mean() - statistics.mean(),
                statistics.variance(),
            ),
            Scope::Branching => (
                statistics.centred_target_mean(),
                statistics.mean_row_variance(),
            ),
        };
        let discriminant = delta * delta - 2.0 * log_odds * variance;
        if discriminant.is_nan() {
            return Ok(None);
        }
        let root = (delta + discriminant.max(0.0).sqrt()) / (2.0 * log_odds);
        // 0/0, which the published arithmetic reaches at C = 0, is no estimate.
        Ok((!root.is_nan()).then(|| root.clamp(self.minimum, self.maximum)))
    }

    /// Returns C, or `None` where there is no estimate whatever the logits are.
    fn log_odds(&self, statistics: &Statistics) -> Result<Option<f64>> {
        self.check()?;
        if statistics.rows() == 0 {
            return Ok(None);
        }
        match self.scope {
            Scope::Root | Scope::Marked => {
                let fan_out = statistics.fan_out().ok_or(Error::UnequalFanOut {
                    scope: self.scope.name(),
                    rows: statistics.rows(),
                    tokens: statistics.tokens(),
                })?;
                self.check_fan_out(fan_out)?;
                Ok(Some((f64::from(fan_out) * self.eta).ln()))
            }
            Scope::Branching => {
                let log_odds = statistics.mean_log_size() + self.eta.ln();
                Ok((log_odds > 0.0).then_some(log_odds))
            }
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let within = |name, value: f64, inside, expected| match inside {
            true => Ok(()),
            false => Err(Error::OutOfRange {
                name,
                value,
                expected,
            }),
        };
        let (eta, alpha) = (self.eta, self.alpha);
        within("eta", eta, eta > 0.0 && eta <= 1.0, "above 0 and at most 1")?;
        within(
            "alpha",
            alpha,
            (0.0..=1.0).contains(&alpha),
            "between 0 and 1",
        )?;
        check_temperature("initial temperature", self.initial)?;
        check_temperature("minimum temperature", self.minimum)?;
        check_temperature("maximum temperature", self.maximum)?;
        let ordered = self.minimum <= self.maximum;
        within(
            "maximum temperature",
            self.maximum,
            ordered,
            "at least the minimum",
        )
    }

    pub(super) fn check_fan_out(&self, fan_out: u32) -> Result<()> {
        if self.allow_degenerate || self.eta * f64::from(fan_out) > 1.0 {
            return Ok(());
        }
        Err(Error::DegenerateScope {
            eta: self.eta,
            fan_out,
        })
    }
}
