//! The two phases of the forward pass over listed sets: the scores of the valid tokens and their statistics, from which the
//! temperature is computed, and then the softmax of every row.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::plan::Plan;
use super::{
    Head, HeadRows, Hidden, LogitGradients, ROWS_PER_TASK, SavedGradient, Wanted, gather_hidden,
};
use crate::backend::batch::{Batch, BatchRow};
use crate::backend::cpu::balance::{balanced, split};
use crate::backend::cpu::element::{Element, Real};
use crate::backend::cpu::matrix::{Gemm, Matrix, multiply_all, padded};
use crate::backend::cpu::row_weights::RowWeights;
use crate::backend::cpu::softmax::{RowSoftmax, check_finite, statistics};
use crate::backend::cpu::vector;
use crate::{Result, Statistics};

/// The result of the first phase, in the order of the slots.
pub(crate) struct Scores<'a, R: Clone> {
    plan: Plan,
    scores: Vec<R>,
    /// The head rows of each group.
    head_rows: Vec<Cow<'a, HeadRows<R>>>,
    pub statistics: Statistics,
}

impl<R: Real> Scores<'_, R> {
    /// Returns the scores of each row in the order of the batch, in f64.
    pub fn in_batch_order(&self) -> Vec<Vec<f64>> {
        let slot_scores = |slot: &[usize]| &self.scores[slot[0]..slot[1]];
        let by_slot: Vec<&[R]> = self.plan.starts.windows(2).map(slot_scores).collect();
        let widened = |scores: &[R]| scores.iter().map(|&score| score.into()).collect();
        let in_order = self.plan.in_batch_order(&by_slot);
        in_order.into_iter().map(widened).collect()
    }
}

/// Runs the first phase, which computes the scores of every row's tokens and the statistics.
pub(crate) fn score<'a, T: Element>(
    hidden: Hidden<T>,
    head: &Head<'a, T>,
    batch: &Batch,
) -> Result<Scores<'a, T::Real>> {
    score_as_planned(Plan::new(batch), hidden, head, batch)
}

/// Does the same as [`score`] with a given plan.
pub(super) fn score_as_planned<'a, T: Element>(
    plan: Plan,
    hidden: Hidden<T>,
    head: &Head<'a, T>,
    batch: &Batch,
) -> Result<Scores<'a, T::Real>> {
    let grouped = plan.starts[plan.ragged().start];
    // Gathering runs on one thread, so it is overlapped with the ragged rows, which use all the others.
    let (group_scores, ragged_scores): (Result<_>, _) = rayon::join(
        || {
            head.check_frozen(batch, &plan)?;
            let slots = 0..plan.ragged().start;
            let positions = slots.map(|slot| Some(plan.row(batch, slot).position));
            let gathered = gather_hidden(hidden, positions);
            let head_rows = gather_head(head, batch, &plan);
            let mut scores = Vec::with_capacity(plan.starts[plan.rows.len()]);
            scores.resize(grouped, T::Real::ZERO);
            score_groups(head, batch, &plan, &gathered, &head_rows, &mut scores);
            Ok((scores, head_rows))
        },
        || score_ragged(hidden, head, batch, &plan),
    );
    let (mut scores, head_rows) = group_scores?;
    scores.extend(ragged_scores);
    let statistics = compute_statistics(batch, &plan, &scores)?;
    Ok(Scores {
        plan,
        scores,
        head_rows,
        statistics,
    })
}

/// Gathers the head rows of each group.
fn gather_head<'a, T: Element>(
    head: &Head<'a, T>,
    batch: &Batch,
    plan: &Plan,
) -> Vec<Cow<'a, HeadRows<T::Real>>> {
    (plan.groups.iter())
        .map(|group| head.rows_of(batch, plan.row(batch, group.start)))
        .collect()
}

/// Computes the scores of the grouped rows by GEMMs of their hidden states and the head rows of their set.
fn score_groups<T: Element>(
    head: &Head<T>,
    batch: &Batch,
    plan: &Plan,
    hidden: &[T::Real],
    head_rows: &[Cow<HeadRows<T::Real>>],
    scores: &mut [T::Real],
) {
    let stride = padded(head.width);
    let group_scores = split(
        scores,
        plan.groups.iter().map(|group| plan.scores(group).len()),
    );
    let gemms =
        (plan.groups.iter().zip(head_rows).zip(group_scores)).map(|((group, rows), result)| {
            let hidden = &hidden[group.start * stride..group.end * stride];
            Gemm {
                left: Matrix::new(hidden, group.len(), head.width, stride),
                right: rows.matrix(head.width).transposed(),
                result,
            }
        });
    multiply_all(gemms, false);
    if !head.bias.is_empty() {
        for group in &plan.groups {
            add_bias(
                head,
                batch,
                plan.row(batch, group.start),
                &mut scores[plan.scores(group)],
            );
        }
    }
}

fn add_bias<T: Element>(head: &Head<T>, batch: &Batch, row: &BatchRow, scores: &mut [T::Real]) {
    let bias: Vec<T::Real> = batch
        .listed(row)
        .iter()
        .map(|&token| head.bias(token))
        .collect();
    for scores in scores.chunks_mut(bias.len()) {
        for (score, &bias) in scores.iter_mut().zip(&bias) {
            *score += bias;
        }
    }
}

/// Computes the scores of the ragged rows by one dot product for each token, without gathering hidden states or head rows.
fn score_ragged<T: Element>(
    hidden: Hidden<T>,
    head: &Head<T>,
    batch: &Batch,
    plan: &Plan,
) -> Vec<T::Real> {
    let mut scores = vec![T::Real::ZERO; plan.scores(&plan.ragged()).len()];
    let ranges = ragged_ranges(plan, head.width);
    let range_scores = split(
        &mut scores,
        ranges.iter().map(|slots| plan.scores(slots).len()),
    );
    (ranges.into_par_iter().zip(range_scores)).for_each(|(slots, mut scores)| {
        let (mut state, mut widened) = (Vec::new(), Vec::new());
        for slot in slots {
            let row = plan.row(batch, slot);
            let hidden = T::widened(hidden.row(row.position), &mut state);
            let tokens = batch.listed(row);
            for (score, &token) in scores.iter_mut().zip(tokens) {
                let head_row = T::widened(head.row(token), &mut widened);
                *score = vector::dot(hidden, head_row) + head.bias(token);
            }
            scores = &mut std::mem::take(&mut scores)[tokens.len()..];
        }
    });
    scores
}

pub(super) fn ragged_ranges(plan: &Plan, width: usize) -> Vec<Range<usize>> {
    let ragged = plan.ragged();
    let size = |slot: usize| plan.starts[slot + 1] - plan.starts[slot];
    (balanced(ragged.len(), |index| size(ragged.start + index) * width).into_iter())
        .map(|range| ragged.start + range.start..ragged.start + range.end)
        .collect()
}

/// Computes the statistics row by row, and merges them in the order of the slots.
fn compute_statistics<R: Real>(batch: &Batch, plan: &Plan, scores: &[R]) -> Result<Statistics> {
    let slot_scores = |slot: usize| {
        let row = plan.row(batch, slot);
        let scores = &scores[plan.starts[slot]..plan.starts[slot + 1]];
        if batch.checked {
            check_finite(row, batch.listed(row).iter().copied(), scores)?;
        }
        Ok(if row.in_statistics {
            statistics(scores, row.rank as usize)
        } else {
            Statistics::default()
        })
    };
    if !batch.checked && !batch.rows.iter().any(|row| row.in_statistics) {
        return Ok(Statistics::default());
    }
    let parts: Vec<Result<Statistics>> = (0..plan.rows.len())
        .into_par_iter()
        .with_min_len(ROWS_PER_TASK)
        .map(slot_scores)
        .collect();
    // The results are collected sequentially, so that of several errors always the same is reported.
    let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(parts.iter().sum())
}

/// Runs the second phase. Returns the softmax of every row in the order of the batch, and what the gradients are computed from.
pub(crate) fn softmax<R: Real>(
    scored: Scores<R>,
    batch: &Batch,
    temperature: f64,
    wanted: Wanted,
) -> (Vec<RowSoftmax>, SavedGradient<R>) {
    let Scores {
        plan,
        mut scores,
        head_rows,
        ..
    } = scored;
    let by_slot = softmax_slot_scoress(batch, &plan, &mut scores, temperature, wanted);
    let softmaxes = plan.in_batch_order(&by_slot);
    let gathered = |rows: Cow<HeadRows<R>>| match rows {
        Cow::Owned(rows) => Some(rows),
        Cow::Borrowed(_) => None,
    };
    let dlogits = LogitGradients {
        values: match wanted {
            Wanted {
                hidden: false,
                head: false,
            } => Vec::new(),
            _ => scores,
        },
        head_rows: match wanted.hidden {
            true => head_rows.into_iter().map(gathered).collect(),
            false => Vec::new(),
        },
        plan,
    };
    (softmaxes, SavedGradient::Logits(dlogits))
}

/// Computes the softmax of every slot and, if a gradient is wanted, replaces its scores by p_v − \[v = y\].
fn softmax_slot_scoress<R: Real>(
    batch: &Batch,
    plan: &Plan,
    scores: &mut [R],
    temperature: f64,
    wanted: Wanted,
) -> Vec<RowSoftmax> {
    let sizes = plan.starts.windows(2).map(|pair| pair[1] - pair[0]);
    let slots = split(scores, sizes);
    let row_weights = || RowWeights::new(batch);
    (slots.into_par_iter().zip(&plan.rows))
        .with_min_len(ROWS_PER_TASK)
        .map_init(row_weights, |row_weights, (scores, &row)| {
            let row = &batch.rows[row as usize];
            let rank = row.rank as usize;
            let weight = row_weights.weight(row, scores, temperature);
            let softmax = RowSoftmax::new(scores, rank, temperature).with_weight(weight);
            if !row.has_loss() {
                scores.fill(R::ZERO);
            } else if wanted.hidden || wanted.head {
                softmax.gradient(scores, rank);
            }
            softmax
        })
        .collect()
}
