//! The temperature of the softmax: fixed, or chosen by the Adaptive Temperature Strategy.

mod adaptive;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use adaptive::Course;
pub use adaptive::{AdaptiveStrategy, AdaptiveTemperature, Scope};

use crate::{Error, Result, Statistics};

/// The temperature τ that logits are divided by.
///
/// It is made from a number (fixed) or from an [`AdaptiveStrategy`], and displays as τ to the precision of f32.
///
/// ```
/// use candle_trie::{AdaptiveStrategy, Scope, Statistics, Temperature};
/// assert_eq!(Temperature::from(1.5).to_string(), "1.5");
///
/// let mut temperature = Temperature::from(AdaptiveStrategy {
///     scope: Scope::Branching,
///     ..AdaptiveStrategy::default()
/// });
/// assert_eq!(temperature.value(), 1.5);
/// // Statistics of several micro-batches merge, and one step is taken for all of them.
/// let statistics = Statistics::of_row(&[9.0, 0.5, -0.5, 1.0, -1.0, 0.0], 0);
/// temperature.step(&statistics, 0)?;
/// # Ok::<(), candle_trie::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Temperature {
    /// It always has this value, which is positive, from 2⁻¹²⁶ to 2¹²⁶.
    Fixed(f64),
    /// It follows the logits.
    Adaptive(AdaptiveTemperature),
}

/// The state of a temperature, with which a training resumes bit-identically.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TemperatureState {
    /// The temperature τ.
    pub value: f64,
    /// The number of the next step, which is the number of steps taken so far: the first step is number 0.
    pub step: u64,
}

impl Temperature {
    /// Makes a temperature that always is `value`.
    pub fn fixed(value: f64) -> Self {
        Self::Fixed(value)
    }

    /// Makes a temperature that follows the logits, by ATS with the paper's settings: those of
    /// [`AdaptiveStrategy::default`].
    pub fn adaptive() -> Self {
        AdaptiveStrategy::default().into()
    }

    /// Returns τ as it stands.
    pub fn value(&self) -> f64 {
        match self {
            Self::Fixed(value) => *value,
            Self::Adaptive(adaptive) => adaptive.state.value,
        }
    }

    /// Takes step number `step` with the statistics of all rows of that step, and returns the new τ. A fixed
    /// temperature stays.
    ///
    /// Steps are counted from 0. The number only decides whether the step belongs to the warm-up, whose steps are
    /// `0..warm_up`. [`MaskedSoftmaxLoss::forward`](crate::MaskedSoftmaxLoss::forward) and `value_and_gradient` count
    /// by themselves, from [`TemperatureState::step`]. After a call with `step` they continue with `step + 1`.
    ///
    /// Without statistics (no row, or a variance that is not a number) τ stays as it was. During the
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

    /// Returns the state, to be saved with a checkpoint. The state of a fixed temperature has step 0.
    ///
    /// ```
    /// use candle_trie::{AdaptiveStrategy, MaskedSoftmaxLoss, TokenTrie};
    /// let trie = TokenTrie::new((0..100).map(|item| (item, [item as u32, 100])))?;
    /// let trained = MaskedSoftmaxLoss::new(&trie, AdaptiveStrategy::default())?;
    /// let saved = trained.temperature()?.state();
    ///
    /// let mut resumed = MaskedSoftmaxLoss::new(&trie, AdaptiveStrategy::default())?;
    /// resumed.temperature_mut()?.restore(saved)?;
    /// assert_eq!(resumed.temperature()?.value(), 1.5);
    /// # Ok::<(), candle_trie::Error>(())
    /// ```
    pub fn state(&self) -> TemperatureState {
        match self {
            Self::Fixed(value) => TemperatureState {
                value: *value,
                step: 0,
            },
            Self::Adaptive(adaptive) => adaptive.state,
        }
    }

    /// Goes on from a state that [`state`](Self::state) returned. A fixed temperature takes its value.
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

    /// Returns the same temperature with another τ.
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

    /// Counts a step that was taken where τ is kept.
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

impl fmt::Display for Temperature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Averaging leaves 1.4999999999999998 where 1.5 is meant. f32 is also what kernels divide by.
        fmt::Display::fmt(&(self.value() as f32), formatter)
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
    fn a_temperature_displays_in_the_digits_of_f32() {
        let mut temperature = Temperature::adaptive();
        temperature.step(&row(0.0, 1.0), 0).unwrap();
        assert_eq!(temperature.value(), 1.4999999999999998);
        assert_eq!(temperature.to_string(), "1.5");
        assert_eq!(format!("{:.3}", Temperature::from(0.25)), "0.250");
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
