//! The softmax of one row, from its gathered valid logits.

use super::element::{self, Element, Real};
use super::vector;
use crate::backend::batch::BatchRow;
use crate::{Error, Result, Statistics, TokenSet};

/// The softmax statistics of one row, which suffice for its loss and, with the logits, for its gradient. The target's
/// exponential is kept separate from the sum of the others, so that neither a small loss nor 1 − p_y is computed as the
/// difference of two numbers near 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowSoftmax {
    /// The largest logit.
    maximum: f64,
    /// Σ exp((z_v − maximum)/τ) over the tokens other than the target.
    others: f64,
    /// (z_y − maximum)/τ.
    target: f64,
    /// BEAR's weight of the row; 1 without BEAR.
    weight: f64,
}

impl RowSoftmax {
    /// Computes the softmax, and replaces the gathered logits by their exponentials, the target's by 0.
    pub fn new<R: Real>(scores: &mut [R], rank: usize, temperature: f64) -> Self {
        let maximum: f64 = vector::maximum(scores).into();
        let target: f64 = scores[rank].into();
        scores[rank] = R::NEG_INFINITY;
        Self {
            maximum,
            others: vector::exponentials(scores, maximum, temperature.recip()),
            target: (target - maximum) / temperature,
            weight: 1.0,
        }
    }

    /// Makes a softmax from the largest logit of the tokens other than the target, the sum of their exponentials
    /// relative to it, and the target's logit.
    pub fn from_parts(others_maximum: f64, others: f64, target: f64, temperature: f64) -> Self {
        let maximum = if target > others_maximum {
            target
        } else {
            others_maximum
        };
        let mut softmax = Self {
            maximum,
            others,
            target: (target - maximum) / temperature,
            weight: 1.0,
        };
        softmax.others *= softmax.relative_to(others_maximum, temperature);
        softmax
    }

    /// Returns the same softmax with BEAR's weight of the row.
    pub fn with_weight(self, weight: f64) -> Self {
        Self { weight, ..self }
    }

    /// Returns BEAR's weight of the row, which multiplies its loss weight.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Divides BEAR's weight of the row.
    pub fn divide_weight(&mut self, by: f64) {
        self.weight /= by;
    }

    /// Returns the factor that turns exponentials relative to another maximum into exponentials relative to this one.
    pub fn relative_to(&self, maximum: f64, temperature: f64) -> f64 {
        if maximum == self.maximum {
            return 1.0;
        }
        ((maximum - self.maximum) / temperature).exp()
    }

    /// Replaces the gathered logits by their exponentials as [`new`](Self::new) does, for a softmax that is known.
    pub fn exponentials<R: Real>(&self, scores: &mut [R], rank: usize, temperature: f64) {
        scores[rank] = R::NEG_INFINITY;
        vector::exponentials(scores, self.maximum, temperature.recip());
    }

    /// Replaces the exponentials that [`new`](Self::new) has written by p_v − \[v = y\].
    pub fn gradient<R: Real>(&self, scores: &mut [R], rank: usize) {
        vector::scale(scores, self.inverse_sum());
        scores[rank] = R::from_f64(self.target_gradient());
    }

    /// Replaces a chunk of the row's logits by `factor·(p_v − \[v = y\])`. `rank` is the index of the target in the chunk, if
    /// it is there.
    pub fn gradient_of_chunk<R: Real>(
        &self,
        logits: &mut [R],
        rank: Option<usize>,
        temperature: f64,
        factor: f64,
    ) {
        vector::exponentials(logits, self.maximum, temperature.recip());
        vector::scale(logits, factor * self.inverse_sum());
        if let Some(rank) = rank {
            logits[rank] = R::from_f64(factor * self.target_gradient());
        }
    }

    /// Returns −ln p_y.
    pub fn loss(&self) -> f64 {
        if self.target == 0.0 {
            self.others.ln_1p()
        } else {
            (self.others + self.target.exp()).ln() - self.target
        }
    }

    /// Returns 1/Σ, the factor that turns an exponential into a probability.
    pub fn inverse_sum(&self) -> f64 {
        (self.others + self.target.exp()).recip()
    }

    /// Returns p_y − 1.
    pub fn target_gradient(&self) -> f64 {
        -self.others * self.inverse_sum()
    }
}

/// Appends the valid logits of a row to `scores`, widened.
pub(super) fn gather<T: Element>(logits: &[T], set: TokenSet, scores: &mut Vec<T::Real>) {
    match set {
        TokenSet::Listed(tokens) => {
            scores.extend(tokens.iter().map(|&token| logits[token as usize].widen()));
        }
        TokenSet::All { size } => element::widen(&logits[..size as usize], scores),
    }
}

/// Returns ln Σ exp(z/τ) over a row of logits.
pub(crate) fn log_sum<T: Element>(logits: &[T], temperature: f64) -> f64 {
    let mut values = Vec::with_capacity(logits.len());
    element::widen(logits, &mut values);
    let maximum: f64 = vector::maximum(&values).into();
    vector::exponentials(&mut values, maximum, temperature.recip()).ln() + maximum / temperature
}

/// Writes `factor·(p_v − [v = y])` at the tokens of the set. `scores` holds the exponentials that [`RowSoftmax::new`] or
/// [`RowSoftmax::exponentials`] wrote.
pub(super) fn write_gradient<T: Element>(
    softmax: &RowSoftmax,
    scores: &[T::Real],
    set: TokenSet,
    rank: usize,
    factor: f64,
    gradient: &mut [T],
) {
    let scale = factor * softmax.inverse_sum();
    let target = T::narrow(T::Real::from_f64(factor * softmax.target_gradient()));
    match set {
        TokenSet::Listed(tokens) => {
            let scale = T::Real::from_f64(scale);
            for (&token, &score) in tokens.iter().zip(scores) {
                gradient[token as usize] = T::narrow(score * scale);
            }
            gradient[tokens[rank] as usize] = target;
        }
        TokenSet::All { size } => {
            vector::scale_into(scores, scale, &mut gradient[..size as usize]);
            gradient[rank] = target;
        }
    }
}

/// Refuses logits that are infinite or NaN.
pub(super) fn check_finite<R: Real>(
    row: &BatchRow,
    mut tokens: impl Iterator<Item = u32>,
    scores: &[R],
) -> Result<()> {
    for &score in scores {
        let (token, value) = (tokens.next(), score.into());
        if !value.is_finite() {
            return Err(Error::NonFinite {
                row: row.row as usize,
                position: row.position,
                token: token.unwrap_or(0),
                value,
            });
        }
    }
    Ok(())
}

/// Computes the statistics of a row's gathered logits.
pub(super) fn statistics<R: Real>(scores: &[R], rank: usize) -> Statistics {
    let (mean, deviations) = vector::moments(scores);
    Statistics::of_moments(scores.len(), mean, deviations, scores[rank].into())
}
