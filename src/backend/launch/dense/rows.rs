//! The rows of a batch in the order in which the kernels take them.

use std::cmp::Reverse;

use crate::backend::batch::{Batch, BatchRow};
use crate::backend::launch::{BeamWeights, StatisticsSizes, TemperaturePlan, kernel_params};
use crate::{Result, Statistics, Temperature};

kernel_params! {
    /// A row that has something to compute.
    pub struct DenseRow in "dense.cuh" { position: u32, set: u32, rank: u32, share: f32, }
}

/// The rows of a batch as the kernels take them: those that have a loss alone, those that enter the
/// statistics too, those that do nothing else; and the positions at which none of these is.
///
/// [`MaskedSoftmaxLoss::dense_rows`](crate::MaskedSoftmaxLoss::dense_rows) makes them.
#[derive(Debug, Clone)]
pub struct DenseRows {
    /// To be uploaded.
    pub rows: Vec<DenseRow>,
    /// To be uploaded: the positions at which no row is, whose loss and gradient are 0. A row of
    /// statistics alone is not among them: its gradient is 0 too, but may replace its logits only when
    /// they have been read.
    pub idle: Vec<u32>,
    /// The sizes of the rows' sets.
    pub(super) sizes: Vec<u32>,
    /// Rows before this one have a loss.
    pub(super) counting: u32,
    /// Rows from this one on enter the statistics.
    pub(super) first_statistics: u32,
    pub(super) times_temperature: bool,
    pub(super) reduced: bool,
    /// The statistics as far as they do not depend on logits.
    pub(super) statistics: Statistics,
    pub(super) beam_weights: BeamWeights,
}

impl DenseRows {
    pub(crate) fn new(batch: &Batch) -> Self {
        // A block takes every so-manieth row: long sets first, all blocks have about as much to do,
        // whatever the period in which sizes come back along the responses.
        let class = |counts: bool, in_statistics: bool| {
            let wanted = (counts, in_statistics);
            let mut rows: Vec<&BatchRow> = (batch.rows.iter())
                .filter(|row| (row.counts(), row.in_statistics) == wanted)
                .collect();
            rows.sort_by_key(|row| Reverse(batch.size(row)));
            rows
        };
        let (alone, both, statistics) = (class(true, false), class(true, true), class(false, true));
        let (first_statistics, counting) = (alone.len(), alone.len() + both.len());
        let ordered = [alone, both, statistics].concat();
        let sizes: Vec<u32> = (ordered.iter()).map(|row| batch.size(row) as u32).collect();
        let row = |row: &&BatchRow| DenseRow {
            position: row.position,
            set: row.set,
            rank: row.rank,
            share: row.share as f32,
        };
        Self {
            rows: ordered.iter().map(row).collect(),
            idle: batch.ignored(),
            sizes,
            counting: counting as u32,
            first_statistics: first_statistics as u32,
            times_temperature: batch.times_temperature,
            reduced: batch.reduced,
            statistics: batch.statistics_sizes(),
            beam_weights: BeamWeights::of(batch),
        }
    }

    /// How many rows have a loss: the backward pass needs [`DenseRows::SOFTMAX_BYTES`] of each.
    #[must_use]
    pub fn counting(&self) -> usize {
        self.counting as usize
    }

    /// Mirrors `Softmax` of `kernels/softmax.cuh`.
    pub const SOFTMAX_BYTES: usize = 12;

    /// The numbers of the loss: one, or one a position.
    #[must_use]
    pub fn losses(&self) -> usize {
        if self.reduced { 1 } else { self.positions() }
    }

    /// What the temperature of a pass comes from that takes a step of `temperature` with the statistics of
    /// these rows.
    ///
    /// # Errors
    /// As [`Temperature::step`], as all that it refuses can be told from the sizes of the sets.
    pub fn next(&self, temperature: &Temperature) -> Result<TemperaturePlan> {
        TemperaturePlan::next(temperature, &self.statistics)
    }

    pub(super) fn positions(&self) -> usize {
        self.rows.len() + self.idle.len()
    }

    pub(super) fn statistics_sizes(&self) -> StatisticsSizes {
        StatisticsSizes::of(&self.statistics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::batch::Denominator;
    use crate::{Row, Rows, Scope, TokenSets};

    #[test]
    fn rows_come_by_what_they_need_long_sets_first() {
        // Sets of 1, 2, 4 and 3 tokens.
        let tokens = vec![5, 0, 1, 0, 1, 2, 3, 6, 7, 8];
        let sets = TokenSets::from_raw(vec![0, 1, 3, 7, 10], tokens).unwrap();
        let row = |(position, set, target)| Row {
            position,
            set,
            target,
        };
        let listed = [
            (0, 1, 1),
            (2, 2, 3),
            (3, 3, 7),
            (4, 1, 0),
            (5, 2, 0),
            (7, 0, 5),
        ];
        let rows = Rows::from_raw(9, listed.map(row).to_vec()).unwrap();
        // Marked: set 1 with a loss, set 2 without, and the unary one.
        let marks = vec![true, false, false, true, true, true];
        let weights = vec![1.0, 1.0, 3.0, 1.0, 0.0, 1.0];
        let rows = rows.with_marks(marks).unwrap().with_weights(weights);
        let batch = Batch::new(
            &sets,
            &rows.unwrap(),
            Some(Scope::Marked),
            Denominator::BranchingWeight,
        );
        let rows = DenseRows::new(&batch.unwrap());

        let positions: Vec<u32> = rows.rows.iter().map(|row| row.position).collect();
        assert_eq!(positions, [2, 3, 0, 4, 5, 7]);
        assert_eq!(rows.sizes, [4, 3, 2, 2, 4, 1]);
        assert_eq!((rows.first_statistics, rows.counting()), (2, 4));
        assert_eq!(rows.idle, [1, 6, 8]);
        assert_eq!((rows.rows[1].rank, rows.rows[1].share), (1, 0.5));
        assert_eq!((rows.statistics.rows(), rows.statistics.tokens()), (4, 9));
        assert_eq!((rows.positions(), rows.losses()), (9, 1));
    }
}
