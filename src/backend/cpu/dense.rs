//! The loss over logits `[N, V]`: two phases over the same stretches of rows. The first gathers the
//! rows that the statistics are of and keeps what it gathered; then τ is known, and the second does
//! every row. A valid logit is read from memory once, except in sets too long to keep.

use std::ops::Range;

use rayon::prelude::*;

use super::balance::balanced;
use super::element::Element;
use super::row_weights::RowWeigher;
use super::softmax::{RowSoftmax, check_finite, gather, statistics, write_gradient};
use crate::backend::batch::{Batch, BatchRow};
use crate::{Result, Statistics};

/// Sets longer than this are gathered anew in the second phase: keeping them would copy a good part
/// of `[N, V]`, and a row of this size still lies in a core's own cache.
const KEPT_TOKENS: usize = 16_384;

/// Logits `[N, V]`, rows `stride` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Logits<'a, T> {
    pub values: &'a [T],
    pub stride: usize,
    pub vocabulary: usize,
}

/// Where the gradient `[N, V]` (contiguous) is written.
pub(crate) struct Gradient<'a, T> {
    pub values: &'a mut [T],
    /// Whether it is known to hold zeros, so that only the valid entries need writing.
    pub zeroed: bool,
}

/// A stretch of rows, and the logits of them that the first phase kept.
struct Stretch<R> {
    rows: Range<usize>,
    kept: Vec<R>,
    /// The statistics of each row, merged in the order of the rows, so that the result does not depend on
    /// where the stretches begin.
    statistics: Vec<Statistics>,
}

/// The result of the first phase: the statistics, and the gathered rows they were computed from.
pub(crate) struct Gathered<R> {
    stretches: Vec<Stretch<R>>,
    pub statistics: Statistics,
}

impl<T: Element> Logits<'_, T> {
    fn row(&self, position: u32) -> &[T] {
        let start = position as usize * self.stride;
        &self.values[start..start + self.vocabulary]
    }
}

/// Phase one: gathers the statistics. `zeroing` says whether the second phase will have a gradient to zero.
pub(crate) fn gather_statistics<T: Element>(
    logits: Logits<T>,
    batch: &Batch,
    zeroing: bool,
) -> Result<Gathered<T::Real>> {
    let stretches: Vec<Result<_>> = stretches(batch, logits.vocabulary, zeroing)
        .into_par_iter()
        .map(|rows| gather_stretch(logits, batch, rows))
        .collect();
    // Not collected in parallel: of several errors the first is to be heard.
    let stretches: Vec<Stretch<_>> = stretches.into_iter().collect::<Result<_>>()?;
    let statistics = (stretches.iter())
        .flat_map(|stretch| &stretch.statistics)
        .sum();
    Ok(Gathered {
        stretches,
        statistics,
    })
}

fn gather_stretch<T: Element>(
    logits: Logits<T>,
    batch: &Batch,
    rows: Range<usize>,
) -> Result<Stretch<T::Real>> {
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
    Ok(Stretch {
        rows,
        kept,
        statistics: statistics_of_rows,
    })
}

fn is_kept(batch: &Batch, row: &BatchRow) -> bool {
    row.in_statistics && batch.size(row) <= KEPT_TOKENS
}

/// Phase two: computes the softmax of every row, and the gradient where one is asked for. Not under BEAR, whose
/// weights are normalised once all are known: there [`backward`] computes it.
pub(crate) fn softmax_rows<T: Element>(
    logits: Logits<T>,
    batch: &Batch,
    gathered: Gathered<T::Real>,
    temperature: f64,
    gradient: Option<Gradient<T>>,
) -> Vec<RowSoftmax> {
    let ranges: Vec<_> = (gathered.stretches.iter())
        .map(|stretch| stretch.rows.clone())
        .collect();
    let shares = divide(batch, &ranges, logits.vocabulary, gradient);
    let softmaxes: Vec<Vec<RowSoftmax>> = (gathered.stretches.into_par_iter().zip(shares))
        .map(|(stretch, mut share)| {
            let mut scratch = Vec::new();
            let mut weigher = RowWeigher::new(batch);
            let mut kept = stretch.kept;
            let mut rest = kept.as_mut_slice();
            let softmaxes = (batch.rows[stretch.rows].iter())
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
                    let weight = weigher.weight(row, scores, temperature);
                    let softmax = RowSoftmax::new(scores, rank, temperature).weighing(weight);
                    if let Some(share) = share.as_mut().filter(|_| row.has_loss()) {
                        let factor = batch.gradient_factor(row, temperature);
                        let values = share.row(row.position);
                        write_gradient(&softmax, scores, batch.set(row), rank, factor, values);
                    }
                    softmax
                })
                .collect();
            if let Some(share) = share {
                share.finish();
            }
            softmaxes
        })
        .collect();
    softmaxes.concat()
}

/// Computes the gradient from what [`softmax_rows`] has returned. `factor` gives what p − [v = y] of a row of the
/// batch is multiplied by, by the row's index.
pub(crate) fn backward<T: Element>(
    logits: Logits<T>,
    batch: &Batch,
    softmaxes: &[RowSoftmax],
    temperature: f64,
    factor: impl Fn(usize) -> f64 + Sync,
    gradient: Gradient<T>,
) {
    let ranges = stretches(batch, logits.vocabulary, !gradient.zeroed);
    let shares = divide(batch, &ranges, logits.vocabulary, Some(gradient));
    (ranges.into_par_iter().zip(shares)).for_each(|(rows, share)| {
        let mut scratch = Vec::new();
        let Some(mut share) = share else { return };
        for index in rows {
            let (row, softmax) = (&batch.rows[index], &softmaxes[index]);
            if !row.has_loss() {
                continue;
            }
            let rank = row.rank as usize;
            scratch.clear();
            gather(logits.row(row.position), batch.set(row), &mut scratch);
            softmax.exponentials(&mut scratch, rank, temperature);
            let values = share.row(row.position);
            write_gradient(
                softmax,
                &scratch,
                batch.set(row),
                rank,
                factor(index),
                values,
            );
        }
        share.finish();
    });
}

/// The part of the gradient that one stretch writes: the positions from its first row up to the next stretch's.
struct GradientShare<'a, T> {
    values: &'a mut [T],
    first_position: usize,
    vocabulary: usize,
    zeroed: bool,
    /// Positions below this one have been written.
    written: usize,
}

impl<T: Element> GradientShare<'_, T> {
    /// The gradient at `position`, zeroed; what lies between it and the last one is zeroed too.
    /// Positions must rise from call to call.
    fn row(&mut self, position: u32) -> &mut [T] {
        let index = position as usize - self.first_position;
        self.zero_up_to(index + 1);
        &mut self.values[index * self.vocabulary..(index + 1) * self.vocabulary]
    }

    /// Zeroes what lies behind the last row.
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

/// Cuts the gradient where the stretches begin; what lies before the first row is the first's.
fn divide<'a, T: Element>(
    batch: &Batch,
    stretches: &[Range<usize>],
    vocabulary: usize,
    gradient: Option<Gradient<'a, T>>,
) -> Vec<Option<GradientShare<'a, T>>> {
    let Some(Gradient { mut values, zeroed }) = gradient else {
        return stretches.iter().map(|_| None).collect();
    };
    if stretches.is_empty() && !zeroed {
        values
            .par_chunks_mut(vocabulary.max(1))
            .for_each(|row| row.fill(T::default()));
    }
    let mut first_position = 0;
    let ends = (stretches.iter().skip(1))
        .map(|stretch| batch.rows[stretch.start].position as usize)
        .chain([batch.positions]);
    (stretches.iter().zip(ends))
        .map(|(_, end)| {
            let length = (end - first_position) * vocabulary;
            let (share, rest) = std::mem::take(&mut values).split_at_mut(length);
            values = rest;
            let share = GradientShare {
                values: share,
                first_position,
                vocabulary,
                zeroed,
                written: 0,
            };
            first_position = end;
            Some(share)
        })
        .collect()
}

/// Stretches of rows of about equal cost. Where the gradient must be zeroed, the positions up to a
/// row count too: a fill writes some eight elements in the time that one is gathered.
fn stretches(batch: &Batch, vocabulary: usize, zeroing: bool) -> Vec<Range<usize>> {
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
