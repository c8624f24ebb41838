//! The rows of a batch in the order in which the kernels take them.

use bytemuck::{Pod, Zeroable};

use super::StatisticsSizes;
use crate::Statistics;
use crate::backend::batch::{Batch, BatchRow};

/// Mirrors `DenseRow` of `kernels/dense.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct DenseRow {
    position: u32,
    set: u32,
    rank: u32,
    share: f32,
}

/// The rows of a batch as the kernels take them: those that have a loss alone, those that enter the
/// statistics too, those that do nothing else; and the positions that have no loss.
///
/// [`MaskedSoftmaxLoss::dense_rows`](crate::MaskedSoftmaxLoss::dense_rows) makes them.
#[derive(Debug, Clone)]
pub struct DenseRows {
    /// To be uploaded.
    pub rows: Vec<DenseRow>,
    /// To be uploaded: the positions whose loss and gradient are 0.
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
}

impl DenseRows {
    pub(crate) fn new(batch: &Batch) -> Self {
        let class = |counts: bool, in_statistics: bool| {
            let of_class =
                move |row: &&BatchRow| (row.counts(), row.in_statistics) == (counts, in_statistics);
            batch.rows.iter().filter(of_class)
        };
        let ordered: Vec<&BatchRow> = (class(true, false))
            .chain(class(true, true))
            .chain(class(false, true))
            .collect();
        let first_statistics = class(true, false).count();
        let counting = first_statistics + class(true, true).count();
        let sizes: Vec<u32> = (ordered.iter()).map(|row| batch.size(row) as u32).collect();
        let statistics = (sizes[first_statistics..].iter())
            .map(|&size| Statistics::of_moments(size as usize, 0.0, 0.0, 0.0))
            .fold(Statistics::default(), |sum, row| sum.merge(&row));
        let row = |row: &&BatchRow| DenseRow {
            position: row.position,
            set: row.set,
            rank: row.rank,
            share: row.share as f32,
        };
        Self {
            rows: ordered.iter().map(row).collect(),
            idle: idle(batch),
            sizes,
            counting: counting as u32,
            first_statistics: first_statistics as u32,
            times_temperature: batch.times_temperature,
            reduced: batch.reduced,
            statistics,
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

    fn positions(&self) -> usize {
        self.counting() + self.idle.len()
    }

    pub(super) fn statistics_sizes(&self) -> StatisticsSizes {
        StatisticsSizes::of(&self.statistics)
    }
}

/// The positions without a loss, rising.
fn idle(batch: &Batch) -> Vec<u32> {
    let mut counting = batch.rows.iter().filter(|row| row.counts()).peekable();
    (0..batch.positions as u32)
        .filter(|&position| counting.next_if(|row| row.position == position).is_none())
        .collect()
}
