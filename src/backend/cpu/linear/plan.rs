//! The order in which a batch's rows are computed.

use std::ops::Range;

use crate::backend::batch::{Batch, BatchRow};

/// The smallest number of rows of a set that are computed by a GEMM. With fewer, gathering the head rows costs more than a GEMM
/// saves. See "Grouping" in docs/benchmarks.md.
pub(super) const GROUPED_ROWS: usize = 4;
/// The smallest number of rows × tokens of such a set. According to "Grouping", GEMMs pay from about 128 on, but in whole
/// batches there is no measurable difference (64, 128 and 512 were tried on two models).
pub(super) const GROUPED_WORK: usize = 512;

/// The order in which the rows of a batch are computed, and the rows that are computed by GEMMs.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The row of the batch in each slot.
    pub rows: Vec<u32>,
    /// The index of the first score of each slot, and the number of all scores.
    pub starts: Vec<usize>,
    /// The slots of each GEMM, from slot 0 on. The slots after the last group are ragged.
    pub groups: Vec<Range<usize>>,
}

impl Plan {
    pub fn new(batch: &Batch) -> Self {
        Self::grouping(batch, |rows, tokens| {
            rows >= GROUPED_ROWS && rows * tokens >= GROUPED_WORK
        })
    }

    /// Makes a plan whose GEMMs are those of the sets for which `grouped(rows, tokens)` is true.
    pub fn grouping(batch: &Batch, grouped: impl Fn(usize, usize) -> bool) -> Self {
        let mut by_set: Vec<u32> = (0..batch.rows.len() as u32).collect();
        by_set.sort_by_key(|&row| batch.rows[row as usize].set);
        let (groups_of_rows, ragged): (Vec<&[u32]>, Vec<&[u32]>) = by_set
            .chunk_by(|&a, &b| batch.rows[a as usize].set == batch.rows[b as usize].set)
            .partition(|rows| {
                let tokens = batch.size(&batch.rows[rows[0] as usize]);
                grouped(rows.len(), tokens)
            });
        let mut groups = Vec::with_capacity(groups_of_rows.len());
        let mut first = 0;
        for rows in &groups_of_rows {
            groups.push(first..first + rows.len());
            first += rows.len();
        }
        let rows: Vec<u32> = groups_of_rows
            .into_iter()
            .chain(ragged)
            .flatten()
            .copied()
            .collect();
        let mut starts = Vec::with_capacity(rows.len() + 1);
        starts.push(0);
        let mut end = 0;
        for &row in &rows {
            end += batch.size(&batch.rows[row as usize]);
            starts.push(end);
        }
        Self {
            rows,
            starts,
            groups,
        }
    }

    /// Returns the row of the batch in a slot.
    pub fn row<'b>(&self, batch: &'b Batch, slot: usize) -> &'b BatchRow {
        &batch.rows[self.rows[slot] as usize]
    }

    /// Returns the slots that are not computed by a GEMM.
    pub fn ragged(&self) -> Range<usize> {
        self.groups.last().map_or(0, |group| group.end)..self.rows.len()
    }

    /// Returns the range of the scores of these slots.
    pub fn scores(&self, slots: &Range<usize>) -> Range<usize> {
        self.starts[slots.start]..self.starts[slots.end]
    }

    /// Reorders `values` from the order of the slots to that of the batch.
    pub fn in_batch_order<V: Clone>(&self, values: &[V]) -> Vec<V> {
        let mut slots = vec![0; self.rows.len()];
        for (slot, &row) in self.rows.iter().enumerate() {
            slots[row as usize] = slot;
        }
        slots.into_iter().map(|slot| values[slot].clone()).collect()
    }
}
