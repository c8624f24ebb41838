//! The gradient of the hidden states: factor·(Σ p_v W_v − W_y) for every row that has a loss, and 0 for all other positions.

use std::borrow::Cow;

use rayon::prelude::*;

use super::scores::ragged_ranges;
use super::{Head, HeadRows, LogitGradients, ROWS_PER_TASK, SavedGradient};
use crate::backend::batch::{Batch, BatchRow};
use crate::backend::cpu::balance::split;
use crate::backend::cpu::element::{Element, Real};
use crate::backend::cpu::matrix::{Matrix, ScaledGemm, ScaledRow, multiply_scaled};
use crate::backend::cpu::vector;

/// Returns the gradient `[N, H]`, which has `length` elements, from what the forward pass saved. `factor` returns the factor of
/// the row with this index in the batch.
pub(crate) fn hidden_gradient<T: Element>(
    saved: &SavedGradient<T::Real>,
    head: &Head<T>,
    batch: &Batch,
    factor: impl Fn(usize) -> f64 + Send,
    length: usize,
) -> Vec<T> {
    // The scope makes this one parallel region. Between several regions, a caller that is not a rayon thread would have to be
    // woken.
    rayon::scope(|_| {
        // Most of the gradient is zeros. One thread would take twice as long to write them.
        let mut gradient: Vec<T> = rayon::iter::repeat_n(T::zeroed(), length).collect();
        write_over_zeros(saved, head, batch, factor, &mut gradient);
        gradient
    })
}

/// Writes the same gradient over whatever `gradient` holds.
pub(crate) fn write_hidden_gradient<T: Element>(
    saved: &SavedGradient<T::Real>,
    head: &Head<T>,
    batch: &Batch,
    factor: impl Fn(usize) -> f64 + Send,
    gradient: &mut [T],
) {
    rayon::scope(|_| {
        let rows = gradient.par_chunks_mut(head.width);
        (rows.with_min_len(ROWS_PER_TASK)).for_each(|row| row.fill(T::zeroed()));
        write_over_zeros(saved, head, batch, factor, gradient);
    });
}

fn write_over_zeros<T: Element>(
    saved: &SavedGradient<T::Real>,
    head: &Head<T>,
    batch: &Batch,
    factor: impl Fn(usize) -> f64,
    gradient: &mut [T],
) {
    let targets = targets(gradient, batch, factor, head.width);
    match saved {
        SavedGradient::Hidden(unscaled) => write_unscaled(unscaled, head.width, targets),
        SavedGradient::Logits(dlogits) => {
            let mut grouped = in_order_of(&dlogits.plan.rows, targets);
            let ragged = grouped.split_off(dlogits.plan.ragged().start);
            rayon::join(
                || write_grouped(dlogits, head, batch, grouped),
                || write_ragged(dlogits, head, batch, ragged),
            );
        }
    }
}

/// Returns the destination of the gradient of each row, in the order of the batch, which is that of the positions. It is `None`
/// for a row without a loss.
fn targets<'a, T>(
    gradient: &'a mut [T],
    batch: &Batch,
    factor: impl Fn(usize) -> f64,
    width: usize,
) -> Vec<Option<ScaledRow<'a, T>>> {
    let mut rest = gradient;
    let mut position = 0;
    let target = |(index, row): (usize, &BatchRow)| {
        rest.split_off_mut(..(row.position - position) as usize * width)?;
        position = row.position + 1;
        let values = rest.split_off_mut(..width)?;
        // The unscaled gradient of a row without a loss may be NaN, and NaN·0 is not 0.
        row.has_loss().then(|| ScaledRow {
            factor: factor(index),
            values,
        })
    };
    batch.rows.iter().enumerate().map(target).collect()
}

/// Reorders `rows` from the order of the batch to that of the slots.
fn in_order_of<V>(slots: &[u32], mut rows: Vec<Option<V>>) -> Vec<Option<V>> {
    (slots.iter())
        .map(|&row| rows[row as usize].take())
        .collect()
}

fn write<T: Element>(unscaled: &[T::Real], target: Option<ScaledRow<T>>) {
    if let Some(row) = target {
        vector::scale_into(unscaled, row.factor, row.values);
    }
}

fn write_unscaled<T: Element>(
    unscaled: &[T::Real],
    width: usize,
    targets: Vec<Option<ScaledRow<T>>>,
) {
    (unscaled.par_chunks(width).zip(targets))
        .with_min_len(ROWS_PER_TASK)
        .for_each(|(unscaled, target)| write(unscaled, target));
}

/// Computes the grouped rows by GEMMs of their gradients of the logits and the head rows of their set.
fn write_grouped<'a, T: Element>(
    dlogits: &'a LogitGradients<T::Real>,
    head: &Head<T>,
    batch: &Batch,
    targets: Vec<Option<ScaledRow<'a, T>>>,
) {
    let plan = &dlogits.plan;
    let head_rows: Vec<Cow<HeadRows<T::Real>>> = (plan.groups.iter().zip(&dlogits.head_rows))
        .map(|(group, gathered)| match gathered {
            Some(rows) => Cow::Borrowed(rows),
            None => head.rows_of(batch, plan.row(batch, group.start)),
        })
        .collect();
    let mut targets = targets.into_iter();
    let gemms = (plan.groups.iter().zip(&head_rows)).map(|(group, rows)| {
        let right = rows.matrix(head.width);
        ScaledGemm {
            left: Matrix::new(
                &dlogits.values[plan.scores(group)],
                group.len(),
                right.rows,
                right.rows,
            ),
            right,
            rows: targets.by_ref().take(group.len()).collect(),
        }
    });
    multiply_scaled(gemms);
}

/// Computes the ragged rows by adding up head rows, without gathering them.
fn write_ragged<T: Element>(
    dlogits: &LogitGradients<T::Real>,
    head: &Head<T>,
    batch: &Batch,
    mut targets: Vec<Option<ScaledRow<T>>>,
) {
    let plan = &dlogits.plan;
    let ranges = ragged_ranges(plan, head.width);
    let range_targets = split(&mut targets, ranges.iter().map(ExactSizeIterator::len));
    (ranges.into_par_iter().zip(range_targets)).for_each(|(slots, targets)| {
        let mut widened = Vec::new();
        let mut unscaled = vec![T::Real::ZERO; head.width];
        for (slot, target) in slots.zip(targets) {
            let row = plan.row(batch, slot);
            let slot_dlogits = &dlogits.values[plan.starts[slot]..plan.starts[slot + 1]];
            unscaled.fill(T::Real::ZERO);
            for (&token, &dlogit) in batch.listed(row).iter().zip(slot_dlogits) {
                let head_row = T::widened(head.row(token), &mut widened);
                vector::add_scaled(&mut unscaled, dlogit, head_row);
            }
            write(&unscaled, target.take());
        }
    });
}
