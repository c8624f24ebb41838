//! The definition of the loss in f64, as the simplest possible code, which fast implementations are checked against.
//!
//! It shares nothing with the fast paths but the types that describe a batch, and the checks of its inputs.
//!
//! ```
//! use candle_trie::reference::{self, Reference};
//! use candle_trie::{Convention, Rows, Temperature, TokenTrie};
//!
//! let trie = TokenTrie::new([(0, [0, 2]), (1, [1, 2])])?;
//! let rows = Rows::from_shifted(&trie, &vec![vec![0, 2]])?;
//! let logits = [0.0, f64::ln(3.0), 50.0, 0.0, 0.0, 0.0]; // [2, 3]
//! let Reference { loss, gradient, .. } = reference::loss(
//!     &logits, 3, trie.sets(), &rows, &mut Temperature::fixed(1.0), Convention::fixed(),
//! )?;
//! assert!((loss - f64::ln(4.0) / 2.0).abs() < 1e-15); // p = 1/4; the end token is unary
//! assert_eq!(gradient[2], 0.0); // masked, whatever its logit
//! # Ok::<(), candle_trie::Error>(())
//! ```

use crate::backend::batch::check_marks;
use crate::loss::{Convention, Reduction};
use crate::temperature::check_positive;
use crate::{Bear, Error, Result, Row, Rows, Scope, Statistics, Temperature, TokenSets};

/// The result of the definition.
#[derive(Debug, Clone)]
pub struct Reference {
    /// The reduced loss, which under [`Reduction::None`] is the sum of `losses`.
    pub loss: f64,
    /// The loss of each row of the `Rows`, weighted (by BEAR too), and times τ where the convention says so.
    pub losses: Vec<f64>,
    /// The weight w that BEAR gives each row of the `Rows`, unary ones included, or 1 without BEAR.
    pub bear_weights: Vec<f64>,
    /// The gradient of the loss by the logits, `[N, V]` in row-major order.
    pub gradient: Vec<f64>,
    /// The statistics that an adaptive temperature is computed from.
    pub statistics: Statistics,
    /// The temperature τ that the loss was computed with.
    pub temperature: f64,
}

/// Computes the loss of `logits` (`[N, vocabulary]` in row-major order), after a step of an adaptive temperature
/// with the statistics of these rows.
///
/// # Errors
/// Rows made with another trie, a row whose set does not exist or does not hold its target, a token outside the vocabulary,
/// logits that do not fit, a denominator that is not positive and finite, rows without marks under
/// [`Scope::Marked`], and statistics that ATS cannot use. The temperature then stays as it was.
pub fn loss(
    logits: &[f64],
    vocabulary: usize,
    sets: &TokenSets,
    rows: &Rows,
    temperature: &mut Temperature,
    convention: Convention,
) -> Result<Reference> {
    loss_with_bear(
        logits,
        vocabulary,
        sets,
        rows,
        temperature,
        convention,
        None,
    )
}

/// Computes the loss with BEAR's row weights where `bear` is given, as
/// [`MaskedSoftmaxLoss::with_bear`](crate::MaskedSoftmaxLoss::with_bear) describes them. The reduction is that of `convention`.
///
/// # Errors
/// Those of [`loss`], and for settings of BEAR out of range.
pub fn loss_with_bear(
    logits: &[f64],
    vocabulary: usize,
    sets: &TokenSets,
    rows: &Rows,
    temperature: &mut Temperature,
    convention: Convention,
    bear: Option<Bear>,
) -> Result<Reference> {
    // No slice has usize::MAX elements, so a product that saturates is refused below.
    let expected = rows.positions().saturating_mul(vocabulary);
    if logits.len() != expected {
        return Err(Error::LengthMismatch {
            what: "logits",
            expected,
            actual: logits.len(),
        });
    }
    if let Reduction::MeanOver(denominator) = convention.reduction {
        check_positive("denominator", denominator)?;
    }
    bear.map_or(Ok(()), |bear| bear.check())?;
    rows.check_sets(sets)?;
    if let Temperature::Adaptive(adaptive) = temperature {
        check_marks(adaptive.strategy.scope, rows)?;
    }
    let resolved = (rows.as_slice().iter().enumerate())
        .map(|(index, row)| ReferenceRow::new(index, row, logits, vocabulary, sets))
        .collect::<Result<Vec<_>>>()?;

    let statistics = statistics(&resolved, rows, temperature);
    let step = temperature.state().step;
    let tau = temperature.step(&statistics, step)?;

    let bear_weights: Vec<f64> = (resolved.iter())
        .map(|row| bear.map_or(1.0, |bear| row.bear_weight(bear, tau)))
        .collect();
    let weight = |index: usize| f64::from(rows.weight(index)) * bear_weights[index];
    let total_weight = |branching_only: bool| -> f64 {
        let counts = |row: &ReferenceRow| !branching_only || row.tokens.len() > 1;
        let counted = resolved.iter().enumerate().filter(|(_, row)| counts(row));
        counted.map(|(index, _)| weight(index)).sum()
    };
    let denominator = match convention.reduction {
        Reduction::MeanOverLabelled => total_weight(false),
        Reduction::MeanOverBranching => total_weight(true),
        Reduction::MeanOver(denominator) => denominator,
        Reduction::Sum | Reduction::None => 1.0,
    };
    let factor = if convention.times_temperature {
        tau
    } else {
        1.0
    };

    let mut losses = vec![0.0; rows.len()];
    let mut gradient = vec![0.0; logits.len()];
    let mut sum = 0.0;
    for (index, row) in resolved.iter().enumerate() {
        if row.tokens.len() == 1 || weight(index) == 0.0 {
            continue;
        }
        let log_probabilities = row.log_probabilities(tau);
        losses[index] = -weight(index) * factor * log_probabilities[row.rank];
        sum += losses[index];
        for (&token, log_probability) in row.tokens.iter().zip(log_probabilities) {
            let probability = log_probability.exp();
            let hot = if token == row.target { 1.0 } else { 0.0 };
            gradient[row.position * vocabulary + token as usize] =
                weight(index) * factor * (probability - hot) / tau / denominator;
        }
    }
    Ok(Reference {
        loss: if sum == 0.0 { 0.0 } else { sum / denominator },
        losses,
        bear_weights,
        gradient,
        statistics,
        temperature: tau,
    })
}

/// A row with the tokens of its set and their logits.
struct ReferenceRow {
    position: usize,
    set: u32,
    target: u32,
    rank: usize,
    tokens: Vec<u32>,
    logits: Vec<f64>,
}

impl ReferenceRow {
    fn new(
        index: usize,
        row: &Row,
        logits: &[f64],
        vocabulary: usize,
        sets: &TokenSets,
    ) -> Result<Self> {
        let set = sets.get(row.set).ok_or(Error::UnknownSet {
            row: index,
            set: row.set,
            sets: sets.count().unwrap_or(0),
        })?;
        let tokens: Vec<u32> = set.iter().collect();
        let rank = tokens.iter().position(|&token| token == row.target);
        let rank = rank.ok_or(Error::TargetNotInSet {
            row: index,
            position: row.position,
            target: row.target,
            set: row.set,
            size: tokens.len(),
        })?;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::TokenOutsideVocabulary { token, vocabulary });
        }
        let position = row.position as usize;
        let logit = |&token: &u32| logits[position * vocabulary + token as usize];
        Ok(Self {
            position,
            set: row.set,
            target: row.target,
            rank,
            logits: tokens.iter().map(logit).collect(),
            tokens,
        })
    }

    /// Returns 1 + λ·σ((ln p_y − ln q_B)/ξ).
    fn bear_weight(&self, bear: Bear, tau: f64) -> f64 {
        let mut descending = self.logits.clone();
        descending.sort_by(|a, b| b.total_cmp(a));
        let last = descending.len().min(bear.beams as usize) - 1;
        let (target, threshold) = (self.logits[self.rank], descending[last]);
        // The difference of two logits at −∞ is NaN, but their probabilities are equal.
        let margin = if target == threshold {
            0.0
        } else {
            (target - threshold) / tau
        };
        1.0 + bear.lambda / (1.0 + (-margin / bear.xi).exp())
    }

    /// Returns ln p_v of every token. Logits are taken relative to the largest, so that large ones keep their precision.
    fn log_probabilities(&self, tau: f64) -> Vec<f64> {
        let maximum = self
            .logits
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        let scaled = self.logits.iter().map(|logit| (logit - maximum) / tau);
        let sum: f64 = scaled.clone().map(f64::exp).sum();
        scaled.map(|logit| logit - sum.ln()).collect()
    }
}

fn statistics(resolved: &[ReferenceRow], rows: &Rows, temperature: &Temperature) -> Statistics {
    let Temperature::Adaptive(adaptive) = temperature else {
        return Statistics::default();
    };
    let counts = |index: usize, row: &ReferenceRow| match adaptive.strategy.scope {
        Scope::Root => row.set == 0,
        Scope::Branching => row.tokens.len() > 1,
        Scope::Marked => rows.marks().is_some_and(|marks| marks[index]),
    };
    (resolved.iter().enumerate())
        .filter(|(index, row)| counts(*index, row))
        .map(|(_, row)| Statistics::of_row(&row.logits, row.rank))
        .fold(Statistics::default(), |sum, row| sum.merge(&row))
}
