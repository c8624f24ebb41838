//! The loss over hidden states `[N, H]` and a head `[V, H]`, without logits: only the head rows of
//! valid tokens are touched.
//!
//! The rows of a batch are put in the order in which they are computed: set by set where a set has
//! enough work for a matrix product, then the ragged rest. Everything kept of a row (its scores, its
//! hidden state, its hidden gradient) lies at its place in that order, its *slot*.

#[cfg(test)]
mod grouping;
mod head_gradient;
mod plan;
mod scores;
mod whole_vocabulary;

use std::collections::HashMap;

use rayon::prelude::*;

pub(crate) use head_gradient::{HeadGradient, head_gradient};
pub(crate) use plan::Plan;
pub(crate) use scores::{score, soften};
pub(crate) use whole_vocabulary::{WholeVocabulary, whole_vocabulary_head_gradient};

use super::element::Element;
use super::matrix::{Matrix, padded};
use super::vector::{self, Real};
use crate::backend::batch::{Batch, BatchRow};

/// Rows handed to one thread at least.
const ROWS_PER_TASK: usize = 8;

/// Hidden states `[N, H]`, rows `stride` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Hidden<'a, T> {
    pub values: &'a [T],
    pub stride: usize,
    pub width: usize,
}

/// A head `[V, H]`, rows `stride` elements apart, with its bias `[V]` and what was gathered of it.
pub(crate) struct Head<'a, T: Element> {
    pub values: &'a [T],
    pub stride: usize,
    pub width: usize,
    /// Empty for none.
    pub bias: &'a [T],
    pub frozen: Option<&'a HashMap<u32, HeadRows<T::Real>>>,
}

/// The head rows of one set, gathered and widened: `[tokens, H]`, rows `padded(H)` apart.
#[derive(Debug, Clone)]
pub(crate) struct HeadRows<R> {
    pub values: Vec<R>,
}

/// What the passes over a batch leave behind.
#[derive(Debug)]
pub(crate) struct Softened<R> {
    pub plan: Plan,
    /// Σ p_v W_v − W_y for each slot, `[slots, H]`; empty where it was not asked for.
    pub hidden_gradient: Vec<R>,
    /// The hidden states of the slots, `[slots, H]` with rows `padded(H)` apart, and the entries
    /// p_v − \[v = y\]: what the head's gradient is made of. Empty where it was not asked for.
    pub hidden: Vec<R>,
    pub errors: Vec<R>,
}

/// Which gradients a pass prepares.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub hidden: bool,
    pub head: bool,
}

impl<R: Real> HeadRows<R> {
    /// `[tokens, H]` for H = `width`.
    fn matrix(&self, width: usize) -> Matrix<'_, R> {
        let stride = padded(width);
        Matrix::new(&self.values, self.values.len() / stride, width, stride)
    }
}

impl<R: Real> Softened<R> {
    /// The gradient of the hidden states `[N, H]`, `length` elements in all: every row's unscaled
    /// gradient times its factor, rounded once, and zeros elsewhere.
    pub fn scaled_hidden_gradient<T: Element<Real = R>>(
        &self,
        batch: &Batch,
        factor: impl Fn(&BatchRow) -> f64 + Sync,
        width: usize,
        length: usize,
    ) -> Vec<T> {
        // Mostly zeros, and as many as make a third of the backward pass where one thread writes them.
        let mut gradient: Vec<T> = rayon::iter::repeat_n(T::zeroed(), length).collect();
        let unscaled = self.hidden_gradient.chunks(width.max(1));
        let mut by_position: Vec<_> = (self.plan.rows.iter().zip(unscaled))
            .map(|(&row, unscaled)| (&batch.rows[row as usize], unscaled))
            .filter(|(row, _)| row.counts())
            .collect();
        by_position.sort_unstable_by_key(|(row, _)| row.position);
        let mut rest = &mut gradient[..];
        let mut position = 0;
        let rows: Vec<_> = (by_position.into_iter())
            .map(|(row, unscaled)| {
                let skipped = (row.position - position) as usize * width;
                let (target, others) = std::mem::take(&mut rest)[skipped..].split_at_mut(width);
                (rest, position) = (others, row.position + 1);
                (row, unscaled, target)
            })
            .collect();
        rows.into_par_iter()
            .with_min_len(ROWS_PER_TASK)
            .for_each(|(row, unscaled, target)| vector::scale_into(unscaled, factor(row), target));
        gradient
    }
}

/// The hidden states of the slots, widened: `[slots, H]`, rows `padded(H)` apart.
fn gather_hidden<T: Element>(hidden: Hidden<T>, batch: &Batch, plan: &Plan) -> Vec<T::Real> {
    let stride = padded(hidden.width);
    let mut gathered = Vec::with_capacity(plan.rows.len() * stride);
    for &row in &plan.rows {
        T::widen_into(hidden.row(batch.rows[row as usize].position), &mut gathered);
        gathered.resize(gathered.len().next_multiple_of(stride), T::Real::ZERO);
    }
    gathered
}

impl<'a, T> Hidden<'a, T> {
    fn row(&self, position: u32) -> &'a [T] {
        let start = position as usize * self.stride;
        &self.values[start..start + self.width]
    }
}

impl<'a, T: Element> Head<'a, T> {
    fn row(&self, token: u32) -> &'a [T] {
        let start = token as usize * self.stride;
        &self.values[start..start + self.width]
    }

    fn bias(&self, token: u32) -> T::Real {
        self.bias
            .get(token as usize)
            .map_or(T::Real::ZERO, |bias| bias.widen())
    }

    /// The bytes that one gathered row takes.
    pub fn row_bytes(&self) -> usize {
        padded(self.width) * size_of::<T::Real>()
    }

    /// Gathers the rows of `tokens`.
    pub fn gather(&self, tokens: impl ExactSizeIterator<Item = u32>) -> HeadRows<T::Real> {
        let stride = padded(self.width);
        let mut values = Vec::with_capacity(tokens.len() * stride);
        for token in tokens {
            T::widen_into(self.row(token), &mut values);
            values.resize(values.len().next_multiple_of(stride), T::Real::ZERO);
        }
        HeadRows { values }
    }
}
