//! Scores of the valid tokens, then their softmax and the hidden gradient: two phases with the
//! temperature between them. Statistics are taken from the scores as these are made.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::plan::Plan;
use super::{Head, HeadRows, Hidden, ROWS_PER_TASK, Softened, Wanted, gather_hidden};
use crate::backend::batch::{Batch, BatchRow};
use crate::backend::cpu::balance::{balanced, split};
use crate::backend::cpu::element::Element;
use crate::backend::cpu::matrix::{Matrix, Product, multiply_all, padded};
use crate::backend::cpu::softmax::{RowSoftmax, check_finite, statistics};
use crate::backend::cpu::vector::{self, Real};
use crate::{Result, Statistics};

/// The first phase's result: everything by slot.
pub(crate) struct Scores<'a, R: Clone> {
    plan: Plan,
    /// `[slots, H]`, rows `padded(H)` apart.
    hidden: Vec<R>,
    scores: Vec<R>,
    /// The head rows of each group.
    head_rows: Vec<Cow<'a, HeadRows<R>>>,
    pub statistics: Statistics,
}

impl<R: Real> Scores<'_, R> {
    /// The scores of each row of the batch, in its order, in f64.
    pub fn in_batch_order(&self) -> Vec<Vec<f64>> {
        let of_slot = |slot: &[usize]| &self.scores[slot[0]..slot[1]];
        let by_slot: Vec<&[R]> = self.plan.starts.windows(2).map(of_slot).collect();
        let widened = |scores: &[R]| scores.iter().map(|&score| score.into()).collect();
        let in_order = self.plan.in_batch_order(&by_slot);
        in_order.into_iter().map(widened).collect()
    }
}

/// Phase one: the scores of every row's tokens, and the statistics.
pub(crate) fn score<'a, T: Element>(
    hidden: Hidden<T>,
    head: &Head<'a, T>,
    batch: &Batch,
) -> Result<Scores<'a, T::Real>> {
    score_as_planned(Plan::new(batch), hidden, head, batch)
}

pub(super) fn score_as_planned<'a, T: Element>(
    plan: Plan,
    hidden: Hidden<T>,
    head: &Head<'a, T>,
    batch: &Batch,
) -> Result<Scores<'a, T::Real>> {
    let mut scores = vec![T::Real::ZERO; plan.starts[plan.rows.len()]];
    let (grouped, ragged) = scores.split_at_mut(plan.starts[plan.ragged().start]);
    // What only one thread can do, or as fast as two, goes beside the ragged rows, which all can share.
    let ((gathered, head_rows), ()) = rayon::join(
        || {
            let gathered = gather_hidden(hidden, batch, &plan);
            let head_rows = gather_head(head, batch, &plan);
            score_groups(head, batch, &plan, &gathered, &head_rows, grouped);
            (gathered, head_rows)
        },
        || score_ragged(hidden, head, batch, &plan, ragged),
    );
    let statistics = measure(batch, &plan, &scores)?;
    Ok(Scores {
        plan,
        hidden: gathered,
        scores,
        head_rows,
        statistics,
    })
}

/// The head rows of each group.
fn gather_head<'a, T: Element>(
    head: &Head<'a, T>,
    batch: &Batch,
    plan: &Plan,
) -> Vec<Cow<'a, HeadRows<T::Real>>> {
    let gathered = plan.groups.iter().map(|group| {
        let row = plan.row(batch, group.start);
        match head.frozen.and_then(|frozen| frozen.get(&row.set)) {
            Some(rows) => Cow::Borrowed(rows),
            None => Cow::Owned(head.gather(batch.listed(row).iter().copied())),
        }
    });
    gathered.collect()
}

/// The grouped rows: matrix products of their hidden states and the head rows of their set.
fn score_groups<T: Element>(
    head: &Head<T>,
    batch: &Batch,
    plan: &Plan,
    hidden: &[T::Real],
    head_rows: &[Cow<HeadRows<T::Real>>],
    scores: &mut [T::Real],
) {
    let stride = padded(head.width);
    let of_groups = split(
        scores,
        plan.groups.iter().map(|group| plan.scores(group).len()),
    );
    let products =
        (plan.groups.iter().zip(head_rows).zip(of_groups)).map(|((group, rows), result)| {
            let hidden = &hidden[group.start * stride..group.end * stride];
            Product {
                left: Matrix::new(hidden, group.len(), head.width, stride),
                right: rows.matrix(head.width).transposed(),
                result,
            }
        });
    multiply_all(products, false);
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

/// The ragged rows: one dot product a token, hidden state and head row read where they lie.
fn score_ragged<T: Element>(
    hidden: Hidden<T>,
    head: &Head<T>,
    batch: &Batch,
    plan: &Plan,
    scores: &mut [T::Real],
) {
    let stretches = ragged_stretches(plan, head.width);
    let scores = split(
        scores,
        stretches.iter().map(|slots| plan.scores(slots).len()),
    );
    stretches
        .into_par_iter()
        .zip(scores)
        .for_each(|(slots, mut scores)| {
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
}

fn ragged_stretches(plan: &Plan, width: usize) -> Vec<Range<usize>> {
    let ragged = plan.ragged();
    let size = |slot: usize| plan.starts[slot + 1] - plan.starts[slot];
    (balanced(ragged.len(), |index| size(ragged.start + index) * width).into_iter())
        .map(|range| ragged.start + range.start..ragged.start + range.end)
        .collect()
}

/// The statistics, row by row and then merged in the order of the slots.
fn measure<R: Real>(batch: &Batch, plan: &Plan, scores: &[R]) -> Result<Statistics> {
    let of_slot = |slot: usize| {
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
        .map(of_slot)
        .collect();
    // Not collected in parallel: of several errors always the same is to be heard.
    let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(parts.iter().sum())
}

/// Phase two: the softmax of every row, in the order of the batch, and what its gradients are made of.
pub(crate) fn soften<T: Element>(
    scored: Scores<T::Real>,
    head: &Head<T>,
    batch: &Batch,
    temperature: f64,
    wanted: Wanted,
) -> (Vec<RowSoftmax>, Softened<T::Real>) {
    let Scores {
        plan,
        hidden,
        mut scores,
        head_rows,
        ..
    } = scored;
    let gradient = if wanted.hidden {
        plan.rows.len() * head.width
    } else {
        0
    };
    let (softmaxes, mut by_slot) = rayon::join(
        || soften_slots(batch, &plan, &mut scores, temperature, wanted),
        || vec![T::Real::ZERO; gradient],
    );
    if wanted.hidden {
        let (grouped, ragged) = by_slot.split_at_mut(plan.ragged().start * head.width);
        rayon::join(
            || group_hidden_gradient(&plan, head.width, &scores, &head_rows, grouped),
            || ragged_hidden_gradient(head, batch, &plan, &scores, ragged),
        );
    }
    let softmaxes = plan.in_batch_order(&softmaxes);
    let softened = Softened {
        hidden_gradient: by_slot,
        hidden: if wanted.head { hidden } else { Vec::new() },
        errors: if wanted.head { scores } else { Vec::new() },
        plan,
    };
    (softmaxes, softened)
}

/// Replaces the scores by p_v − \[v = y\] where a gradient is wanted.
fn soften_slots<R: Real>(
    batch: &Batch,
    plan: &Plan,
    scores: &mut [R],
    temperature: f64,
    wanted: Wanted,
) -> Vec<RowSoftmax> {
    let sizes = plan.starts.windows(2).map(|pair| pair[1] - pair[0]);
    let slots = split(scores, sizes);
    (slots.into_par_iter().zip(&plan.rows))
        .with_min_len(ROWS_PER_TASK)
        .map(|(scores, &row)| {
            let row = &batch.rows[row as usize];
            let rank = row.rank as usize;
            let softmax = RowSoftmax::new(scores, rank, temperature);
            if !row.counts() {
                scores.fill(R::ZERO);
            } else if wanted.hidden || wanted.head {
                softmax.errors(scores, rank);
            }
            softmax
        })
        .collect()
}

fn group_hidden_gradient<R: Real>(
    plan: &Plan,
    width: usize,
    errors: &[R],
    head_rows: &[Cow<HeadRows<R>>],
    by_slot: &mut [R],
) {
    let gradients = split(by_slot, plan.groups.iter().map(|group| group.len() * width));
    let products =
        (plan.groups.iter().zip(head_rows).zip(gradients)).map(|((group, rows), result)| {
            let (right, errors) = (rows.matrix(width), &errors[plan.scores(group)]);
            Product {
                left: Matrix::new(errors, group.len(), right.rows, right.rows),
                right,
                result,
            }
        });
    multiply_all(products, false);
}

fn ragged_hidden_gradient<T: Element>(
    head: &Head<T>,
    batch: &Batch,
    plan: &Plan,
    errors: &[T::Real],
    by_slot: &mut [T::Real],
) {
    let stretches = ragged_stretches(plan, head.width);
    let gradients = split(
        by_slot,
        stretches.iter().map(|slots| slots.len() * head.width),
    );
    stretches
        .into_par_iter()
        .zip(gradients)
        .for_each(|(slots, gradients)| {
            let mut widened = Vec::new();
            for (slot, gradient) in slots.zip(gradients.chunks_mut(head.width.max(1))) {
                let row = plan.row(batch, slot);
                let errors = &errors[plan.starts[slot]..plan.starts[slot + 1]];
                for (&token, &error) in batch.listed(row).iter().zip(errors) {
                    vector::add_scaled(gradient, error, T::widened(head.row(token), &mut widened));
                }
            }
        });
}
