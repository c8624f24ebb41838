//! The temperature of the softmax: fixed, or chosen by the Adaptive Temperature Strategy.

mod adaptive;

use serde::{Deserialize, Serialize};

pub(crate) use adaptive::Course;
pub use adaptive::{AdaptiveStrategy, AdaptiveTemperature, Scope};

use crate::{Error, Result, Statistics};

/// The temperature τ that logits are divided by.
///
/// ```
/// use candle_trie::{AdaptiveStrategy, Scope, Statistics, Temperature};
/// let mut temperature = Temperature::from(AdaptiveStrategy {
///     scope: Scope::Branching,
///     ..AdaptiveStrategy::default()
/// });
/// assert_eq!(temperature.value(), 1.5);
/// // Statistics of several micro-batches merge; one step is taken for all of them.
/// let statistics = Statistics::of_row(&[9.0, 0.5, -0.5, 1.0, -1.0, 0.0], 0);
/// temperature.step(&statistics, 0)?;
/// # Ok::<(), candle_trie::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Temperature {
    /// Always this value.
    Fixed(f64),
    /// Follows the logits.
    Adaptive(AdaptiveTemperature),
}

/// Where an adaptive temperature stands: enough to go on as if never interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TemperatureState {
    /// τ.
    pub value: f64,
    /// The number of the next step.
    pub step: u64,
}

impl Temperature {
    /// Always `value`.
    pub fn fixed(value: f64) -> Self {
        Self::Fixed(value)
    }

    /// ATS with the paper's settings.
    pub fn adaptive() -> Self {
        AdaptiveStrategy::default().into()
    }

    /// τ as it stands.
    pub fn value(&self) -> f64 {
        match self {
            Self::Fixed(value) => *value,
            Self::Adaptive(adaptive) => adaptive.state.value,
        }
    }

    /// Takes step number `step` with the statistics of all that was seen in it, and returns the new
    /// τ. A fixed temperature stays.
    ///
    /// Without statistics (no row, or a variance that is not a number) τ stays as it was; during the
    /// warm-up it is τ₀ in any case.
    ///
    /// # Errors
    /// [`Error::UnequalFanOut`] and [`Error::DegenerateScope`] for pooled statistics that ATS cannot
    /// use (during the warm-up too), and [`Error::OutOfRange`] for a setting out of range. τ then stays
    /// as it was.
    pub fn step(&mut self, statistics: &Statistics, step: u64) -> Result<f64> {
        match self {
            Self::Fixed(value) => check_temperature("temperature", *value).map(|()| *value),
            Self::Adaptive(adaptive) => adaptive.step(statistics, step),
        }
    }

    /// Where it stands, to be saved with a checkpoint. The state of a fixed temperature has step 0.
    pub fn state(&self) -> TemperatureState {
        match self {
            Self::Fixed(value) => TemperatureState {
                value: *value,
                step: 0,
            },
            Self::Adaptive(adaptive) => adaptive.state,
        }
    }

    /// Goes on from where [`state`](Self::state) was taken. A fixed temperature takes the value.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a temperature that is not from 2⁻¹²⁶ to 2¹²⁶.
    pub fn restore(&mut self, state: TemperatureState) -> Result<()> {
        check_temperature("temperature", state.value)?;
        match self {
            Self::Fixed(value) => *value = state.value,
            Self::Adaptive(adaptive) => adaptive.state = state,
        }
        Ok(())
    }

    /// The same, with another τ.
    pub(crate) fn at(&self, value: f64) -> Self {
        match self {
            Self::Fixed(_) => Self::Fixed(value),
            Self::Adaptive(adaptive) => Self::Adaptive(AdaptiveTemperature {
                state: TemperatureState {
                    value,
                    ..adaptive.state
                },
                ..*adaptive
            }),
        }
    }

    /// A step has been taken where τ is kept.
    pub(crate) fn count_step(&mut self) {
        if let Self::Adaptive(adaptive) = self {
            adaptive.state.step = adaptive.state.step.saturating_add(1);
        }
    }

    /// Refuses settings out of range, and a root scope whose fan-out ATS is not defined for.
    /// `root_fan_out` is the size of set 0.
    pub(crate) fn check(&self, root_fan_out: u32) -> Result<()> {
        match self {
            Self::Fixed(value) => check_temperature("temperature", *value),
            Self::Adaptive(adaptive) => {
                adaptive.strategy.check()?;
                match adaptive.strategy.scope {
                    Scope::Root => adaptive.strategy.check_fan_out(root_fan_out),
                    Scope::Branching | Scope::Marked => Ok(()),
                }
            }
        }
    }
}

impl From<f64> for Temperature {
    /// Makes a fixed temperature.
    fn from(value: f64) -> Self {
        Self::Fixed(value)
    }
}

impl From<AdaptiveStrategy> for Temperature {
    fn from(strategy: AdaptiveStrategy) -> Self {
        Self::Adaptive(AdaptiveTemperature {
            strategy,
            state: TemperatureState {
                value: strategy.initial,
                step: 0,
            },
        })
    }
}

/// Refuses temperatures that, or whose inverse, f32 does not hold to its full precision: the softmax
/// of the kernels multiplies by the inverse, and ∞ × 0 is no score.
pub(crate) fn check_temperature(name: &'static str, value: f64) -> Result<()> {
    let least = f64::from(f32::MIN_POSITIVE);
    if (least..=least.recip()).contains(&value) {
        return Ok(());
    }
    Err(Error::OutOfRange {
        name,
        value,
        expected: "positive, from 2^-126 to 2^126",
    })
}

pub(crate) fn check_positive(name: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::OutOfRange {
        name,
        value,
        expected: "positive and finite",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row of 20 logits: mean 0, a given spread, and a target standing out by `delta`.
    fn row(delta: f64, spread: f64) -> Statistics {
        Statistics::of_moments(20, 0.0, 19.0 * spread * spread, delta)
    }

    fn strategy() -> AdaptiveStrategy {
        AdaptiveStrategy {
            alpha: 1.0,
            ..AdaptiveStrategy::default()
        }
    }

    #[test]
    fn the_estimate_solves_the_published_equation() {
        let (delta, spread) = (8.0, 1.4);
        let tau = strategy().estimate(&row(delta, spread)).unwrap().unwrap();
        let left = delta / tau - spread * spread / (2.0 * tau * tau);
        assert!((left - (20.0f64 * 0.25).ln()).abs() < 1e-12, "{tau}");
    }

    #[test]
    fn pooled_and_row_centred_forms_agree_on_one_row() {
        let branching = AdaptiveStrategy {
            scope: Scope::Branching,
            ..strategy()
        };
        let statistics = row(7.0, 1.2);
        let (pooled, centred) = (
            strategy().estimate(&statistics),
            branching.estimate(&statistics),
        );
        let (pooled, centred) = (pooled.unwrap().unwrap(), centred.unwrap().unwrap());
        assert!((pooled - centred).abs() < 1e-12);
    }

    #[test]
    fn the_clamp_comes_before_the_average() {
        let mut temperature = Temperature::from(AdaptiveStrategy {
            alpha: 0.5,
            initial: 2.0,
            ..strategy()
        });
        temperature.step(&row(1000.0, 1.0), 0).unwrap();
        assert_eq!(temperature.value(), 3.5);
    }

    #[test]
    fn the_warm_up_resets_and_no_statistics_change_nothing() {
        let mut temperature = Temperature::from(AdaptiveStrategy {
            warm_up: 2,
            ..strategy()
        });
        let state = TemperatureState {
            value: 4.0,
            step: 0,
        };
        temperature.restore(state).unwrap();
        assert_eq!(temperature.step(&Statistics::default(), 1).unwrap(), 1.5);
        temperature.step(&row(8.0, 1.4), 2).unwrap();
        let before = temperature.value();
        assert!(before > 4.0);
        assert_eq!(temperature.step(&Statistics::default(), 3).unwrap(), before);
        assert_eq!(temperature.state().step, 4);
    }

    #[test]
    fn degenerate_fan_outs_are_refused_or_give_the_published_arithmetic() {
        let two = Statistics::of_moments(2, 0.0, 1.0, 0.5);
        assert!(matches!(
            strategy().estimate(&two),
            Err(Error::DegenerateScope { fan_out: 2, .. })
        ));
        let published = AdaptiveStrategy {
            allow_degenerate: true,
            ..strategy()
        };
        assert_eq!(published.estimate(&two).unwrap(), Some(1.5));
        let at_zero = |delta| published.estimate(&Statistics::of_moments(4, 0.0, 1.0, delta));
        assert_eq!(at_zero(1.0).unwrap(), Some(5.0));
        assert_eq!(at_zero(-1.0).unwrap(), None);
        let branching = AdaptiveStrategy {
            scope: Scope::Branching,
            ..strategy()
        };
        assert_eq!(branching.estimate(&two).unwrap(), None);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let defaults = AdaptiveStrategy::default();
        for wrong in [
            AdaptiveStrategy {
                eta: 0.0,
                ..defaults
            },
            AdaptiveStrategy {
                eta: 1.5,
                ..defaults
            },
            AdaptiveStrategy {
                alpha: -0.1,
                ..defaults
            },
            AdaptiveStrategy {
                alpha: f64::NAN,
                ..defaults
            },
            AdaptiveStrategy {
                initial: 0.0,
                ..defaults
            },
            AdaptiveStrategy {
                minimum: 3.0,
                maximum: 2.0,
                ..defaults
            },
        ] {
            assert!(Temperature::from(wrong).check(100).is_err(), "{wrong:?}");
        }
        assert!(Temperature::fixed(f64::INFINITY).check(100).is_err());
        assert!(Temperature::adaptive().check(4).is_err());
        assert!(Temperature::adaptive().check(5).is_ok());
    }
}
