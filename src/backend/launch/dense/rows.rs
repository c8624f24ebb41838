//! The rows of a batch in the order that the kernels over logits require.

use std::cmp::Reverse;

use crate::backend::batch::{Batch, BatchRow};
use crate::backend::launch::{BatchTotals, kernel_params};

kernel_params! {
    /// A row that has a loss, or whose logits enter the statistics.
    pub struct DenseRow in "dense.cuh" { position: u32, set: u32, rank: u32, loss_weight: f32, }
}

/// The rows of a batch in the order that the kernels over logits require: first those that only have a loss, then those that
/// also enter the statistics, then those that only enter the statistics.
///
/// [`MaskedSoftmaxLoss::dense_rows`](crate::MaskedSoftmaxLoss::dense_rows) makes them.
#[derive(Debug, Clone)]
pub struct DenseRows {
    /// The rows, to be uploaded.
    pub rows: Vec<DenseRow>,
    /// The positions without a row, to be uploaded. Their loss and gradient are 0. A row that only enters the statistics is not
    /// among them. Its gradient is 0 too, but must not overwrite its logits before they have been read.
    pub ignored: Vec<u32>,
    /// The size of each row's set, in tokens.
    pub(super) sizes: Vec<u32>,
    /// The number of rows that have a loss, which come first.
    pub(super) loss_row_count: u32,
    /// The index of the first row that enters the statistics. All later rows do too.
    pub(super) first_statistics: u32,
    /// The properties of the batch as a whole.
    pub totals: BatchTotals,
}

impl DenseRows {
    pub(crate) fn new(batch: &Batch) -> Self {
        // A block processes every gridDim-th row. With long sets first, all blocks have about as much work, also when the sizes
        // repeat along the responses with a period that divides gridDim.
        let class = |has_loss: bool, in_statistics: bool| {
            let wanted = (has_loss, in_statistics);
            let mut rows: Vec<&BatchRow> = (batch.rows.iter())
                .filter(|row| (row.has_loss(), row.in_statistics) == wanted)
                .collect();
            rows.sort_by_key(|row| Reverse(batch.size(row)));
            rows
        };
        let (alone, both, statistics) = (class(true, false), class(true, true), class(false, true));
        let (first_statistics, loss_row_count) = (alone.len(), alone.len() + both.len());
        let ordered = [alone, both, statistics].concat();
        let sizes: Vec<u32> = (ordered.iter()).map(|row| batch.size(row) as u32).collect();
        let row = |row: &&BatchRow| DenseRow {
            position: row.position,
            set: row.set,
            rank: row.rank,
            loss_weight: row.loss_weight as f32,
        };
        Self {
            rows: ordered.iter().map(row).collect(),
            ignored: batch.ignored(),
            sizes,
            loss_row_count: loss_row_count as u32,
            first_statistics: first_statistics as u32,
            totals: BatchTotals::new(batch),
        }
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
        assert_eq!((rows.first_statistics, rows.loss_row_count), (2, 4));
        assert_eq!(rows.ignored, [1, 6, 8]);
        assert_eq!((rows.rows[1].rank, rows.rows[1].loss_weight), (1, 0.5));
        let totals = &rows.totals;
        assert_eq!(
            (totals.statistics.rows(), totals.statistics.tokens()),
            (4, 9)
        );
        assert_eq!((totals.positions(), totals.losses()), (9, 1));
    }
}
