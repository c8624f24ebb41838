//! The rows of a batch in the order in which the kernels take them: set by set where a matrix product
//! pays, then the ragged rest.

use std::cmp::Reverse;

use bytemuck::{Pod, Zeroable};

use crate::backend::batch::{Batch, BatchRow};
use crate::backend::launch::{StatisticsSizes, TemperaturePlan};
use crate::{Result, Statistics, Temperature};

/// Mirrors `LinearRow` of `kernels/linear.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct LinearRow {
    position: u32,
    pub(super) set: u32,
    rank: u32,
    share: f32,
    pub(super) scores: u64,
    in_statistics: u32,
    unused: u32,
}

/// Rows of one set, whose scores and gradients are matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    pub set: u32,
    /// The first of its rows, and how many there are.
    pub first: u32,
    pub rows: u32,
    pub tokens: u32,
    /// Where its scores begin, and how far apart those of two rows are.
    pub scores: u64,
    pub stride: u32,
    /// Where its head rows are among the gathered ones; `None` where a frozen head has them.
    pub gathered: Option<u32>,
}

/// The rows of a batch as the kernels over hidden states and a head take them.
///
/// [`MaskedSoftmaxLoss::linear_rows`](crate::MaskedSoftmaxLoss::linear_rows) makes them.
#[derive(Debug, Clone)]
pub struct LinearRows {
    pub(super) rows: Vec<LinearRow>,
    pub(super) idle: Vec<u32>,
    pub(super) gathered: Vec<u32>,
    /// Where all rows range over the whole vocabulary, its size: the groups are then chunks of the rows,
    /// one after the other in the same room.
    pub(super) vocabulary: Option<u32>,
    pub(super) groups: Vec<Group>,
    /// How many scores the groups have, and the ragged rows.
    pub(super) grouped_scores: u64,
    pub(super) ragged_scores: u64,
    pub(super) longest_ragged: u32,
    pub(super) positions: usize,
    pub(super) times_temperature: bool,
    pub(super) reduced: bool,
    pub(super) statistics: Statistics,
}

/// At most so many groups, those with the most work: each costs two matrix products, and a forward
/// and backward pass should take a dozen launches.
const GROUPS: usize = 4;
/// Sets with fewer rows × tokens are left to the ragged kernel: two launches would take longer than
/// what they save.
const LEAST_WORK: usize = 512;
/// Nor are sets of fewer tokens worth a product, however many rows they have: no row of them keeps a
/// block for as long as one launch takes (about 10 µs on an H100).
const LEAST_TOKENS: usize = 32;
/// Over the whole vocabulary, so many scores are in memory at a time: 128 MiB of f32.
const CHUNK_SCORES: usize = 1 << 25;
/// The scores of a group's rows begin at 16 bytes in every type.
const SCORES_ALIGNMENT: usize = 8;

impl LinearRow {
    /// Whether the row has a loss and a gradient.
    pub(super) fn counts(&self) -> bool {
        self.share != 0.0
    }
}

impl LinearRows {
    /// `is_frozen` says for which sets a frozen head has the head rows.
    pub(crate) fn new(batch: &Batch, is_frozen: impl Fn(u32) -> bool) -> Self {
        if let Some(vocabulary) = batch.whole_vocabulary() {
            let rows: Vec<&BatchRow> = batch.rows.iter().collect();
            let mut whole = Self::in_order(batch, &[], &rows, is_frozen);
            whole.vocabulary = Some(vocabulary as u32);
            return whole.within(CHUNK_SCORES);
        }
        let mut by_set: Vec<&BatchRow> = batch.rows.iter().collect();
        by_set.sort_by_key(|row| row.set);
        let mut sets: Vec<&[&BatchRow]> = by_set.chunk_by(|a, b| a.set == b.set).collect();
        let work = |rows: &[&BatchRow]| match batch.size(rows[0]) {
            tokens if tokens < LEAST_TOKENS => 0,
            tokens => rows.len() * tokens,
        };
        sets.sort_by_key(|rows| Reverse(work(rows)));
        let groups = (sets.iter())
            .take_while(|rows| work(rows) >= LEAST_WORK)
            .count()
            .min(GROUPS);
        let (grouped, ragged) = sets.split_at(groups);
        let mut ragged: Vec<&BatchRow> = ragged.concat();
        // A block takes every so-manieth row: long sets first, all blocks have about as much to do.
        ragged.sort_by_key(|row| Reverse(batch.size(row)));
        Self::in_order(batch, grouped, &ragged, is_frozen)
    }

    fn in_order(
        batch: &Batch,
        grouped: &[&[&BatchRow]],
        ragged: &[&BatchRow],
        is_frozen: impl Fn(u32) -> bool,
    ) -> Self {
        let mut rows = Vec::with_capacity(batch.rows.len());
        let mut gathered: Vec<u32> = grouped.concat().iter().map(|row| row.position).collect();
        let positions = gathered.len();
        let mut groups = Vec::with_capacity(grouped.len());
        let mut scores = 0;
        for members in grouped {
            let tokens = batch.listed(members[0]);
            let stride = tokens.len().next_multiple_of(SCORES_ALIGNMENT);
            let frozen = is_frozen(members[0].set);
            groups.push(Group {
                set: members[0].set,
                first: rows.len() as u32,
                rows: members.len() as u32,
                tokens: tokens.len() as u32,
                scores,
                stride: stride as u32,
                gathered: (!frozen).then_some((gathered.len() - positions) as u32),
            });
            if !frozen {
                gathered.extend(tokens);
            }
            for row in *members {
                rows.push(linear_row(row, scores));
                scores += stride as u64;
            }
        }
        let mut ragged_scores = 0;
        for row in ragged {
            rows.push(linear_row(row, ragged_scores));
            ragged_scores += batch.size(row) as u64;
        }
        Self {
            rows,
            idle: batch.idle(),
            gathered,
            vocabulary: None,
            groups,
            grouped_scores: scores,
            ragged_scores,
            longest_ragged: ragged.first().map_or(0, |row| batch.size(row) as u32),
            positions: batch.positions,
            times_temperature: batch.times_temperature,
            reduced: batch.reduced,
            statistics: batch.statistics_sizes(),
        }
    }

    /// Over the whole vocabulary, with no more than so many scores in memory at a time, but for those of
    /// one row. Other rows stay as they are.
    #[must_use]
    pub fn within(mut self, scores: usize) -> Self {
        let Some(tokens) = self.vocabulary else {
            return self;
        };
        let stride = (tokens as usize).next_multiple_of(SCORES_ALIGNMENT);
        let most = (scores / stride).max(1);
        self.gathered = self.rows.iter().map(|row| row.position).collect();
        let chunks = self.rows.chunks_mut(most).enumerate().map(|(chunk, rows)| {
            for (index, row) in rows.iter_mut().enumerate() {
                row.scores = (index * stride) as u64;
            }
            Group {
                set: 0,
                first: (chunk * most) as u32,
                rows: rows.len() as u32,
                tokens,
                scores: 0,
                stride: stride as u32,
                gathered: None,
            }
        });
        self.groups = chunks.collect();
        let largest = self.groups.first().map_or(0, |group| group.rows as usize);
        self.grouped_scores = (largest * stride) as u64;
        (self.ragged_scores, self.longest_ragged) = (0, 0);
        self
    }

    /// The chunks of rows over the whole vocabulary, each as a batch of its own, or else all rows; the
    /// first has the idle positions.
    pub(super) fn chunks(&self) -> Vec<Self> {
        if !self.is_whole() || self.groups.is_empty() {
            return vec![self.clone()];
        }
        let chunk = |group: &Group| {
            let rows = group.first as usize..(group.first + group.rows) as usize;
            Self {
                rows: self.rows[rows.clone()].to_vec(),
                idle: match group.first {
                    0 => self.idle.clone(),
                    _ => Vec::new(),
                },
                gathered: self.gathered[rows].to_vec(),
                groups: vec![Group { first: 0, ..*group }],
                ..*self
            }
        };
        self.groups.iter().map(chunk).collect()
    }

    /// To be uploaded.
    #[must_use]
    pub fn rows(&self) -> &[LinearRow] {
        &self.rows
    }

    /// To be uploaded: the positions whose loss and gradient are 0.
    #[must_use]
    pub fn idle(&self) -> &[u32] {
        &self.idle
    }

    /// To be uploaded: the positions of grouped rows, then the tokens whose head rows are gathered.
    #[must_use]
    pub fn gathered(&self) -> &[u32] {
        &self.gathered
    }

    /// Whether all rows range over the whole vocabulary.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.vocabulary.is_some()
    }

    /// The temperature of a pass that takes a step of `temperature` with the statistics of these rows.
    ///
    /// # Errors
    /// As [`Temperature::step`], as all that it refuses can be told from the sizes of the sets.
    pub fn next(&self, temperature: &Temperature) -> Result<TemperaturePlan> {
        TemperaturePlan::next(temperature, &self.statistics)
    }

    /// The numbers of the loss: one, or one a position.
    #[must_use]
    pub fn losses(&self) -> usize {
        if self.reduced { 1 } else { self.positions() }
    }

    /// The positions of the batch.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// How many rows have matrix products.
    #[must_use]
    pub fn grouped(&self) -> usize {
        self.groups
            .last()
            .map_or(0, |group| (group.first + group.rows) as usize)
    }

    /// How many head rows are gathered for the batch.
    #[must_use]
    pub fn gathered_head_rows(&self) -> usize {
        self.gathered.len() - self.grouped()
    }

    /// The sets that have matrix products, in the order of the groups.
    pub fn grouped_sets(&self) -> impl Iterator<Item = u32> + '_ {
        self.groups.iter().map(|group| group.set)
    }

    /// How many tokens each ragged row has, falling.
    pub(super) fn ragged_sizes(&self) -> impl Iterator<Item = u32> + '_ {
        let ragged = &self.rows[self.grouped()..];
        let ends = ragged.iter().skip(1).map(|row| row.scores);
        let ends = ends.chain([self.ragged_scores]);
        (ragged.iter().zip(ends)).map(|(row, end)| (end - row.scores) as u32)
    }

    pub(super) fn statistics_sizes(&self) -> StatisticsSizes {
        StatisticsSizes::of(&self.statistics)
    }
}

fn linear_row(row: &BatchRow, scores: u64) -> LinearRow {
    // The kernels tell by it which rows count: a share must not round to 0.
    let least = if row.counts() { f32::MIN_POSITIVE } else { 0.0 };
    LinearRow {
        position: row.position,
        set: row.set,
        rank: row.rank,
        share: (row.share as f32).max(least),
        scores,
        in_statistics: row.in_statistics.into(),
        unused: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::batch::Denominator;
    use crate::{Row, Rows, TokenSets};

    /// The device knows rows by their shares; one that it took for none would leave a position to nobody.
    #[test]
    fn a_row_whose_share_is_too_small_for_f32_counts_still() {
        let sets = TokenSets::from_raw(vec![0, 2], vec![0, 1]).unwrap();
        let row = |position| Row {
            position,
            set: 0,
            target: 1,
        };
        let rows = Rows::from_raw(4, vec![row(1), row(2)]).unwrap();
        let batch = Batch::new(&sets, &rows, None, Denominator::Given(1e60)).unwrap();
        let rows = LinearRows::new(&batch, |_| false);
        assert!(rows.rows.iter().all(LinearRow::counts));
        assert_eq!(rows.idle, [0, 3]);
        assert_eq!(rows.positions(), 4);
    }
}
