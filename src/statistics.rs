//! The statistics that the adaptive temperature is computed from: sums that merge exactly.

use bytemuck::{Pod, Zeroable};

/// Statistics of the valid logits of some rows, in f64.
///
/// One value can hold the statistics of any number of rows. Two values [`merge`](Self::merge) into the statistics of the
/// rows of both, exactly up to rounding, so that micro-batches, devices and processes can each compute their part. The
/// default holds those of zero rows.
///
/// The value has what both forms of ATS need: pooled moments (as published, arXiv 2504.04178 section
/// 4.2) and sums of row-centred quantities (for the branching scope).
///
/// ```
/// use candle_trie::Statistics;
/// let first = Statistics::of_row(&[1.0, 2.0, 6.0], 2);
/// let second = Statistics::of_row(&[0.0, 4.0, 5.0], 0);
/// let both = first.merge(&second);
/// assert_eq!(both.mean(), 3.0);
/// assert_eq!(both.target_mean(), 3.0);
/// assert_eq!(both.variance(), 5.6); // unbiased
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Statistics {
    rows: f64,
    tokens: f64,
    mean: f64,
    /// The sum of squared deviations from `mean`.
    deviations: f64,
    target_mean: f64,
    /// The set size that all rows share, which is 0 for no row and [`MIXED`] where they differ.
    fan_out: f64,
    centred_targets: f64,
    variances: f64,
    log_sizes: f64,
}

const MIXED: f64 = -1.0;

impl Statistics {
    /// The number of f64 fields of a value, which is the length of [`LossOutput::statistics`](crate::LossOutput::statistics).
    pub const LENGTH: usize = size_of::<Self>() / size_of::<f64>();

    /// Computes the statistics of one row with these valid logits, of which the one at index `target` is the
    /// target's. An index out of range or an empty row gives the statistics of no row.
    pub fn of_row(logits: &[f64], target: usize) -> Self {
        let Some(&target) = logits.get(target) else {
            return Self::default();
        };
        let mean = logits.iter().sum::<f64>() / logits.len() as f64;
        let deviations = logits.iter().map(|logit| (logit - mean).powi(2)).sum();
        Self::of_moments(logits.len(), mean, deviations, target)
    }

    /// Makes the statistics of one row of `size` valid logits, given their mean, the sum of their squared
    /// deviations from it, and the logit of the target.
    pub fn of_moments(size: usize, mean: f64, deviations: f64, target: f64) -> Self {
        let size = size as f64;
        Self {
            rows: 1.0,
            tokens: size,
            mean,
            deviations,
            target_mean: target,
            fan_out: size,
            centred_targets: target - mean,
            variances: deviations / (size - 1.0).max(1.0),
            log_sizes: size.ln(),
        }
    }

    /// Returns the statistics of the rows of both values.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        if self.rows == 0.0 {
            return *other;
        }
        if other.rows == 0.0 {
            return *self;
        }
        let (rows, tokens) = (self.rows + other.rows, self.tokens + other.tokens);
        let apart = other.mean - self.mean;
        let share = other.tokens / tokens;
        Self {
            rows,
            tokens,
            mean: self.mean + apart * share,
            deviations: self.deviations + other.deviations + apart * apart * self.tokens * share,
            target_mean: self.target_mean
                + (other.target_mean - self.target_mean) * (other.rows / rows),
            fan_out: if self.fan_out == other.fan_out {
                self.fan_out
            } else {
                MIXED
            },
            centred_targets: self.centred_targets + other.centred_targets,
            variances: self.variances + other.variances,
            log_sizes: self.log_sizes + other.log_sizes,
        }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> u64 {
        self.rows as u64
    }

    /// Returns the number of valid logits in all rows, those of the targets included.
    pub fn tokens(&self) -> u64 {
        self.tokens as u64
    }

    /// Returns μ, the mean of all valid logits (0 for no row).
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Returns σ², the unbiased variance of all valid logits (NaN for fewer than two).
    pub fn variance(&self) -> f64 {
        self.deviations / (self.tokens - 1.0).max(0.0)
    }

    /// Returns the sum of squared deviations of all valid logits from their mean.
    pub fn deviations(&self) -> f64 {
        self.deviations
    }

    /// Returns μ⁺, the mean of the logits of the targets (0 for no row).
    pub fn target_mean(&self) -> f64 {
        self.target_mean
    }

    /// Returns n, the number of tokens in the set of each row, or `None` where rows differ or there is none.
    pub fn fan_out(&self) -> Option<u32> {
        (self.fan_out > 0.0).then_some(self.fan_out as u32)
    }

    /// Returns the mean over rows of the target's logit minus the row's mean (NaN for no row).
    pub fn centred_target_mean(&self) -> f64 {
        self.centred_targets / self.rows
    }

    /// Returns the mean over rows of the unbiased variance inside a row (NaN for no row).
    pub fn mean_row_variance(&self) -> f64 {
        self.variances / self.rows
    }

    /// Returns the mean over rows of ln n, with n the size of the row's set (NaN for no row).
    pub fn mean_log_size(&self) -> f64 {
        self.log_sizes / self.rows
    }
}

impl<'a> std::iter::Sum<&'a Statistics> for Statistics {
    fn sum<I: Iterator<Item = &'a Statistics>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| sum.merge(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_is_neutral() {
        let row = Statistics::of_row(&[1.0, 3.0], 1);
        assert_eq!(row.merge(&Statistics::default()), row);
        assert_eq!(Statistics::default().merge(&row), row);
        assert_eq!(Statistics::of_row(&[], 0).rows(), 0);
        assert!(Statistics::default().variance().is_nan());
    }

    #[test]
    fn rows_of_different_sizes_share_no_fan_out() {
        let merged = Statistics::of_row(&[1.0, 3.0], 1).merge(&Statistics::of_row(&[1.0; 3], 1));
        assert_eq!(merged.fan_out(), None);
        assert_eq!(merged.merge(&merged).fan_out(), None);
        let equal = Statistics::of_row(&[1.0, 3.0], 1).merge(&Statistics::of_row(&[1.0; 2], 1));
        assert_eq!(equal.fan_out(), Some(2));
    }

    #[test]
    fn a_common_offset_of_ten_thousand_keeps_the_variance() {
        let logits = [0.25, -0.5, 1.0, 2.0];
        let offset = logits.map(|logit| logit - 1e4);
        let merged = Statistics::of_row(&offset, 0).merge(&Statistics::of_row(&offset, 1));
        let plain = Statistics::of_row(&logits, 0).merge(&Statistics::of_row(&logits, 1));
        assert!((merged.variance() - plain.variance()).abs() < 1e-10);
        assert!((merged.centred_target_mean() - plain.centred_target_mean()).abs() < 1e-10);
    }
}
