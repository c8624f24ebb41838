//! The loss over logits `[N, V]`, in two phases over the same ranges of rows. The first gathers the valid logits of the
//! statistics rows and keeps them. With its statistics τ is known, and the second phase computes every row. A valid logit is
//! read from memory once, except in sets that are too long to keep.

use std::ops::Range;

use rayon::prelude::*;

use super::balance::balanced;
use super::element::Element;
use super::row_weights::RowWeights;
use super::softmax::{RowSoftmax, check_finite, gather, statistics, write_gradient};
use crate::backend::batch::{Batch, BatchRow};
use crate::{Result, Statistics};

/// The largest set whose logits the first phase keeps, in tokens. Larger ones are gathered again in the second phase: keeping
/// them would copy a large part of `[N, V]`. A row of this size still fits the L2 cache of a core.
const KEPT_TOKENS: usize = 16_384;

/// Logits `[N, V]` with row stride `stride`, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Logits<'a, T> {
    pub values: &'a [T],
    pub stride: usize,
    pub vocabulary: usize,
}

/// The destination of the gradient `[N, V]`, which is contiguous.
pub(crate) struct Gradient<'a, T> {
    pub values: &'a mut [T],
    /// Whether it is known to hold zeros, so that only the valid entries must be written.
    pub zeroed: bool,
}

/// A range of rows, which one task computes.
struct RowRange<R> {
    rows: Range<usize>,
    /// The logits that the first phase kept, row by row.
    kept: Vec<R>,
    /// The statistics of each row. They are merged in the order of the rows, so that the result does not depend on how rows are
    /// cut into ranges.
    statistics: Vec<Statistics>,
}

/// The result of the first phase: the statistics, and the gathered rows that they were computed from.
pub(crate) struct Gathered<R> {
    ranges: Vec<RowRange<R>>,
    pub statistics: Statistics,
}

impl<T: Element> Logits<'_, T> {
    fn row(&self, position: u32) -> &[T] {
        let start = position as usize * self.stride;
        &self.values[start..start + self.vocabulary]
    }
}

/// Runs the first phase, which computes the statistics. `zeroing` says whether the second phase will have a gradient to zero.
pub(crate) fn gather_statistics<T: Element>(
    logits: Logits<T>,
    batch: &Batch,
    zeroing: bool,
) -> Result<Gathered<T::Real>> {
    let ranges: Vec<Result<_>> = row_ranges(batch, logits.vocabulary, zeroing)
        .into_par_iter()
        .map(|rows| gather_range(logits, batch, rows))
        .collect();
    // The results are collected sequentially, so that of several errors the first is reported.
    let ranges: Vec<RowRange<_>> = ranges.into_iter().collect::<Result<_>>()?;
    let statistics = (ranges.iter()).flat_map(|range| &range.statistics).sum();
    Ok(Gathered { ranges, statistics })
}

fn gather_range<T: Element>(
    logits: Logits<T>,
    batch: &Batch,
    rows: Range<usize>,
) -> Result<RowRange<T::Real>> {
    let mut kept = Vec::new();
    let mut statistics_of_rows = Vec::new();
    for row in &batch.rows[rows.clone()] {
        if !row.in_statistics && !batch.checked {
            continue;
        }
        let start = kept.len();
        gather(logits.row(row.position), batch.set(row), &mut kept);
        let scores = &kept[start..];
        if batch.checked {
            check_finite(row, batch.set(row).iter(), scores)?;
        }
        if row.in_statistics {
            statistics_of_rows.push(statistics(scores, row.rank as usize));
        }
        if !is_kept(batch, row) {
            kept.truncate(start);
        }
    }
    Ok(RowRange {
        rows,
        kept,
        statistics: statistics_of_rows,
    })
}

fn is_kept(batch: &Batch, row: &BatchRow) -> bool {
    row.in_statistics && batch.size(row) <= KEPT_TOKENS
}

/// Runs the second phase, which computes the softmax of every row and, if it is wanted, the gradient. Under BEAR, [`backward`]
/// must compute the gradient, because the weights are normalised once all of them are known.
pub(crate) fn softmax_rows<T: Element>(
    logits: Logits<T>,
    batch: &Batch,
    gathered: Gathered<T::Real>,
    temperature: f64,
    gradient: Option<Gradient<T>>,
) -> Vec<RowSoftmax> {
    let ranges: Vec<_> = (gathered.ranges.iter())
        .map(|range| range.rows.clone())
        .collect();
    let parts = divide(batch, &ranges, logits.vocabulary, gradient);
    let softmaxes: Vec<Vec<RowSoftmax>> = (gathered.ranges.into_par_iter().zip(parts))
        .map(|(range, mut part)| {
            let mut scratch = Vec::new();
            let mut row_weights = RowWeights::new(batch);
            let mut kept = range.kept;
            let mut rest = kept.as_mut_slice();
            let softmaxes = (batch.rows[range.rows].iter())
                .map(|row| {
                    let scores = if is_kept(batch, row) {
                        let (scores, others) =
                            std::mem::take(&mut rest).split_at_mut(batch.size(row));
                        rest = others;
                        scores
                    } else {
                        scratch.clear();
                        gather(logits.row(row.position), batch.set(row), &mut scratch);
                        scratch.as_mut_slice()
                    };
                    let rank = row.rank as usize;
                    let weight = row_weights.weight(row, scores, temperature);
                    let softmax = RowSoftmax::new(scores, rank, temperature).with_weight(weight);
                    if let Some(part) = part.as_mut().filter(|_| row.has_loss()) {
                        let factor = batch.gradient_factor(row, temperature);
                        let values = part.row(row.position);
                        write_gradient(&softmax, scores, batch.set(row), rank, factor, values);
                    }
                    softmax
                })
                .collect();
            if let Some(part) = part {
                part.finish();
            }
            softmaxes
        })
        .collect();
    softmaxes.concat()
}

/// Computes the gradient from what [`softmax_rows`] returned. `factor` returns the factor of p − \[v = y\] of the row with this
/// index in the batch.
pub(crate) fn backward<T: Element>(
    logits: Logits<T>,
    batch: &Batch,
    softmaxes: &[RowSoftmax],
    temperature: f64,
    factor: impl Fn(usize) -> f64 + Sync,
    gradient: Gradient<T>,
) {
    let ranges = row_ranges(batch, logits.vocabulary, !gradient.zeroed);
    let parts = divide(batch, &ranges, logits.vocabulary, Some(gradient));
    (ranges.into_par_iter().zip(parts)).for_each(|(rows, part)| {
        let mut scratch = Vec::new();
        let Some(mut part) = part else { return };
        for index in rows {
            let (row, softmax) = (&batch.rows[index], &softmaxes[index]);
            if !row.has_loss() {
                continue;
            }
            let rank = row.rank as usize;
            scratch.clear();
            gather(logits.row(row.position), batch.set(row), &mut scratch);
            softmax.exponentials(&mut scratch, rank, temperature);
            let values = part.row(row.position);
            write_gradient(
                softmax,
                &scratch,
                batch.set(row),
                rank,
                factor(index),
                values,
            );
        }
        part.finish();
    });
}

/// The part of the gradient that the task of one range writes: the positions from its first row to the first row of the next
/// range.
struct GradientPart<'a, T> {
    values: &'a mut [T],
    first_position: usize,
    vocabulary: usize,
    zeroed: bool,
    /// The positions before this one are written.
    written: usize,
}

impl<T: Element> GradientPart<'_, T> {
    /// Zeroes the gradient from the previous position up to and including `position`, and returns the row of `position`.
    /// Positions must ascend from call to call.
    fn row(&mut self, position: u32) -> &mut [T] {
        let index = position as usize - self.first_position;
        self.zero_up_to(index + 1);
        &mut self.values[index * self.vocabulary..(index + 1) * self.vocabulary]
    }

    /// Zeroes the rest of the part.
    fn finish(mut self) {
        self.zero_up_to(self.values.len() / self.vocabulary.max(1));
    }

    fn zero_up_to(&mut self, position: usize) {
        if !self.zeroed {
            self.values[self.written * self.vocabulary..position * self.vocabulary]
                .fill(T::default());
        }
        self.written = position;
    }
}

/// Cuts the gradient into the parts of the ranges. The positions before the first row belong to the first range.
fn divide<'a, T: Element>(
    batch: &Batch,
    ranges: &[Range<usize>],
    vocabulary: usize,
    gradient: Option<Gradient<'a, T>>,
) -> Vec<Option<GradientPart<'a, T>>> {
    let Some(Gradient { mut values, zeroed }) = gradient else {
        return ranges.iter().map(|_| None).collect();
    };
    if ranges.is_empty() && !zeroed {
        values
            .par_chunks_mut(vocabulary.max(1))
            .for_each(|row| row.fill(T::default()));
    }
    let mut first_position = 0;
    let ends = (ranges.iter().skip(1))
        .map(|range| batch.rows[range.start].position as usize)
        .chain([batch.positions]);
    (ranges.iter().zip(ends))
        .map(|(_, end)| {
            let length = (end - first_position) * vocabulary;
            let (part, rest) = std::mem::take(&mut values).split_at_mut(length);
            values = rest;
            let part = GradientPart {
                values: part,
                first_position,
                vocabulary,
                zeroed,
                written: 0,
            };
            first_position = end;
            Some(part)
        })
        .collect()
}

/// Returns ranges of rows of about equal cost. If the gradient must be zeroed, the ignored positions before a row are part of
/// its cost: about eight elements are zeroed in the time in which one is gathered.
fn row_ranges(batch: &Batch, vocabulary: usize, zeroing: bool) -> Vec<Range<usize>> {
    const FILLED_PER_GATHERED: usize = 8;
    const ROW_OVERHEAD: usize = 16;
    let filled = if zeroing {
        vocabulary / FILLED_PER_GATHERED
    } else {
        0
    };
    balanced(batch.rows.len(), |index| {
        let row = &batch.rows[index];
        let before = index
            .checked_sub(1)
            .map_or(0, |before| batch.rows[before].position + 1);
        batch.size(row) + ROW_OVERHEAD + (row.position + 1 - before) as usize * filled
    })
}
