//! Beam-search-aware row weights.

use crate::temperature::check_temperature;
use crate::{Error, Result};

/// BEAR, the beam-search-aware regularisation of [arXiv 2601.22925](https://arxiv.org/abs/2601.22925):
/// row weights that depend on whether beam search would keep the target.
///
/// Beam search with B beams drops an item as soon as one of its tokens is not among the B most probable. With p the
/// softmax of a row's scores at temperature τ over its C(u) valid tokens, y its target and q_B the B-th largest of
/// these probabilities (equal ones counted as often as they occur; the smallest where C(u) has fewer than B tokens), a
/// branching row has the weight
///
/// w = 1 + λ·σ((ln p_y − ln q_B)/ξ),  σ(x) = 1/(1 + exp(−x))
///
/// as the authors' code has it. It is a constant to the gradient. The loss is the weighted mean over the branching
/// rows, Σ w·(−ln p_y) / Σ w. See [`MaskedSoftmaxLoss::with_bear`](crate::MaskedSoftmaxLoss::with_bear).
///
/// The defaults are B = 10 and the settings of the authors' runs on Amazon Toys, λ = 0.25 and ξ = 2.75.
///
/// ```
/// use candle_core::{DType, Device, Var};
/// use candle_trie::{Bear, MaskedSoftmaxLoss, Rows, Temperature, TokenTrie};
///
/// let trie = TokenTrie::new([(0, [1, 2, 9]), (1, [1, 3, 9]), (2, [4, 2, 9])])?;
/// let bear = Bear { beams: 2, ..Bear::default() };
/// let mut loss = MaskedSoftmaxLoss::new(&trie, Temperature::fixed(1.0))?.with_bear(bear)?;
///
/// let rows = Rows::from_unshifted(&trie, &vec![vec![-100i64, 1, 3, 9]])?;
/// let logits = Var::zeros((1, 4, 10), DType::F32, &Device::Cpu)?; // [B, T, V]
/// let output = loss.forward(&logits, &rows)?;
/// // Two branching rows with p_y = q_B = 1/2.
/// assert!((output.loss.to_scalar::<f32>()? - 2f32.ln()).abs() < 1e-6);
/// assert_eq!(output.read_bear_weight()?, Some(2.0 * (1.0 + 0.25 / 2.0)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bear {
    /// The number B of beams that the model will be decoded with, at least 1. By default 10.
    pub beams: u32,
    /// The difference λ between the weight of a target far above the B-th token and that of one far below it. From 0,
    /// where every weight is 1, to 2¹²⁶. By default 0.25.
    pub lambda: f64,
    /// The width ξ of the rise of the weight, in nats of ln p_y − ln q_B. Positive, from 2⁻¹²⁶ to 2¹²⁶. By default 2.75.
    pub xi: f64,
}

impl Default for Bear {
    fn default() -> Self {
        Self {
            beams: 10,
            lambda: 0.25,
            xi: 2.75,
        }
    }
}

impl Bear {
    /// Computes the weight of a row, given the target's score and the B-th largest.
    ///
    /// The probabilities share their normaliser, so that ln p_y − ln q_B = (z_y − z_(B))/τ. Scores whose difference
    /// is not a number (of ∞ and ∞, or of NaN) count as equal: such a row's loss says what is wrong with it, and its
    /// weight must not spoil the mean that the other rows' gradients are divided by.
    pub(crate) fn weight(&self, target: f64, threshold: f64, temperature: f64) -> f64 {
        let margin = (target - threshold) / temperature / self.xi;
        if margin.is_nan() {
            return self.weight_of_a_tie();
        }
        1.0 + self.lambda / (1.0 + (-margin).exp())
    }

    /// Returns the weight of a row whose target has the B-th largest score, as that of every unary row has.
    pub(crate) fn weight_of_a_tie(&self) -> f64 {
        1.0 + self.lambda / 2.0
    }

    /// Refuses settings out of range.
    pub(crate) fn check(&self) -> Result<()> {
        if self.beams == 0 {
            return Err(Error::OutOfRange {
                name: "BEAR's beams",
                value: 0.0,
                expected: "at least 1",
            });
        }
        if !(0.0..=f64::from(f32::MIN_POSITIVE).recip()).contains(&self.lambda) {
            return Err(Error::OutOfRange {
                name: "BEAR's lambda",
                value: self.lambda,
                expected: "from 0 to 2^126",
            });
        }
        check_temperature("BEAR's xi", self.xi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAR: Bear = Bear {
        beams: 3,
        lambda: 1.5,
        xi: 0.5,
    };

    #[test]
    fn a_weight_rises_with_the_targets_margin() {
        let sigmoid = 1.0 / (1.0 + f64::exp(-2.0));
        assert!((BEAR.weight(3.0, 1.0, 2.0) - (1.0 + 1.5 * sigmoid)).abs() < 1e-15);
        assert!((BEAR.weight(1.0, 3.0, 2.0) - (1.0 + 1.5 * (1.0 - sigmoid))).abs() < 1e-15);
        assert_eq!(BEAR.weight(7.0, 7.0, 2.0), 1.75);
    }

    #[test]
    fn scores_at_the_end_of_the_number_line_have_a_finite_weight() {
        let infinity = f64::INFINITY;
        for (target, threshold, expected) in [
            (0.0, -infinity, 2.5),
            (-infinity, 0.0, 1.0),
            (1e300, -1e300, 2.5),
            (f64::MAX, -f64::MAX, 2.5),
            (-infinity, -infinity, 1.75),
            (infinity, infinity, 1.75),
            (f64::NAN, 0.0, 1.75),
        ] {
            for temperature in [f64::exp2(-126.0), 1.0, f64::exp2(126.0)] {
                let weight = BEAR.weight(target, threshold, temperature);
                let far = temperature <= 1.0 || !target.is_finite() || !threshold.is_finite();
                assert!(weight.is_finite());
                assert!(
                    weight == expected || !far,
                    "{target}, {threshold}: {weight}"
                );
            }
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(BEAR.check().is_ok() && Bear::default().check().is_ok());
        let plain = Bear {
            lambda: 0.0,
            ..BEAR
        };
        assert!(plain.check().is_ok());
        for wrong in [
            Bear { beams: 0, ..BEAR },
            Bear {
                lambda: -0.1,
                ..BEAR
            },
            Bear {
                lambda: 1e300,
                ..BEAR
            },
            Bear {
                lambda: f64::NAN,
                ..BEAR
            },
            Bear { xi: 0.0, ..BEAR },
            Bear { xi: -1.0, ..BEAR },
            Bear {
                xi: f64::INFINITY,
                ..BEAR
            },
            Bear {
                xi: f64::NAN,
                ..BEAR
            },
        ] {
            let refused = wrong.check();
            assert!(
                matches!(refused, Err(Error::OutOfRange { .. })),
                "{wrong:?}"
            );
        }
    }
}
