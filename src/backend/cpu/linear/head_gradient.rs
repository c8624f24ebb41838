//! The gradient of the head: Σ over rows of factor·(p_v − \[v = y\])·hidden for every token v that
//! some row's set holds, and zero elsewhere. Sums run in the order of the slots.

use rayon::prelude::*;

use super::plan::Plan;
use super::{Errors, Hidden, counting_position, gather_hidden};
use crate::backend::batch::Batch;
use crate::backend::cpu::element::Element;
use crate::backend::cpu::matrix::{Matrix, multiply, padded};
use crate::backend::cpu::vector::{self, Real};

/// Where the gradient of the head `[V, H]` and of its bias `[V]` (empty for none) go; both hold
/// zeros.
pub(crate) struct HeadGradient<'a, T> {
    pub head: &'a mut [T],
    pub bias: &'a mut [T],
    pub width: usize,
}

/// The sums of the tokens that occur, in the type they are computed in.
struct TokenSums<R> {
    /// Rising.
    tokens: Vec<u32>,
    /// `[tokens, H]`.
    head: Vec<R>,
    bias: Vec<R>,
    width: usize,
}

/// A ragged slot's share in the sum of a token.
struct Share<R> {
    rank: u32,
    slot: u32,
    error: R,
}

pub(crate) fn head_gradient<T: Element>(
    errors: &Errors<T::Real>,
    hidden: Hidden<T>,
    batch: &Batch,
    factor: impl Fn(usize) -> f64,
    gradient: HeadGradient<T>,
) {
    let plan = &errors.plan;
    let errors = scaled_errors(errors, factor);
    let positions = (plan.rows.iter()).map(|&row| counting_position(&batch.rows[row as usize]));
    let hidden = gather_hidden(hidden, positions);
    let mut sums = TokenSums::new(batch, gradient.width);
    sums.add_groups(plan, batch, &hidden, &errors);
    sums.add_ragged(plan, batch, &hidden, &errors);
    sums.write(gradient);
}

fn scaled_errors<R: Real>(errors: &Errors<R>, factor: impl Fn(usize) -> f64) -> Vec<R> {
    let plan = &errors.plan;
    let mut scaled = Vec::with_capacity(errors.values.len());
    for (slot, &row) in plan.rows.iter().enumerate() {
        let factor = R::from_f64(factor(row as usize));
        let errors = &errors.values[plan.starts[slot]..plan.starts[slot + 1]];
        scaled.extend(errors.iter().map(|&error| error * factor));
    }
    scaled
}

impl<R: Real> TokenSums<R> {
    fn new(batch: &Batch, width: usize) -> Self {
        let mut sets: Vec<u32> = batch.rows.iter().map(|row| row.set).collect();
        sets.sort_unstable();
        sets.dedup();
        let mut tokens: Vec<u32> = (sets.iter())
            .flat_map(|&set| batch.sets.get(set).into_iter().flat_map(|set| set.iter()))
            .collect();
        tokens.par_sort_unstable();
        tokens.dedup();
        Self {
            head: vec![R::ZERO; tokens.len() * width],
            bias: vec![R::ZERO; tokens.len()],
            tokens,
            width,
        }
    }

    /// Where a token's sum is kept: every token asked for is one of a set of the batch.
    fn rank(&self, token: u32) -> usize {
        self.tokens.partition_point(|&other| other < token)
    }

    fn add_groups(&mut self, plan: &Plan, batch: &Batch, hidden: &[R], errors: &[R]) {
        let width = self.width;
        let stride = padded(width);
        for group in &plan.groups {
            let set = batch.listed(plan.row(batch, group.start));
            let errors = &errors[plan.scores(group)];
            let left = Matrix::new(errors, group.len(), set.len(), set.len());
            let hidden = &hidden[group.start * stride..group.end * stride];
            let right = Matrix::new(hidden, group.len(), width, stride);
            let mut products = vec![R::ZERO; set.len() * width];
            multiply(left.transposed(), right, &mut products, false);
            for (index, &token) in set.iter().enumerate() {
                let rank = self.rank(token);
                let sum = &mut self.head[rank * width..][..width];
                vector::add_scaled(sum, R::from_f64(1.0), &products[index * width..][..width]);
                for errors in errors.chunks(set.len()) {
                    self.bias[rank] += errors[index];
                }
            }
        }
    }

    /// The ragged slots, turned round: token by token, each in the order of the slots.
    fn add_ragged(&mut self, plan: &Plan, batch: &Batch, hidden: &[R], errors: &[R]) {
        let width = self.width;
        let stride = padded(width);
        let mut shares = Vec::new();
        for slot in plan.ragged() {
            let tokens = batch.listed(plan.row(batch, slot));
            let errors = &errors[plan.starts[slot]..plan.starts[slot + 1]];
            shares.extend(tokens.iter().zip(errors).map(|(&token, &error)| Share {
                rank: self.rank(token) as u32,
                slot: slot as u32,
                error,
            }));
        }
        shares.par_sort_unstable_by_key(|share| (share.rank, share.slot));
        let of_rank = |rank: usize| {
            let start = shares.partition_point(|share| (share.rank as usize) < rank);
            let end = shares.partition_point(|share| (share.rank as usize) <= rank);
            &shares[start..end]
        };
        (self
            .head
            .par_chunks_mut(width.max(1))
            .zip(&mut self.bias)
            .enumerate())
        .for_each(|(rank, (sum, bias))| {
            for share in of_rank(rank) {
                let hidden = &hidden[share.slot as usize * stride..][..width];
                vector::add_scaled(sum, share.error, hidden);
                *bias += share.error;
            }
        });
    }

    fn write<T: Element<Real = R>>(&self, gradient: HeadGradient<T>) {
        let width = self.width;
        for (rank, &token) in self.tokens.iter().enumerate() {
            let target = &mut gradient.head[token as usize * width..][..width];
            vector::scale_into(&self.head[rank * width..][..width], 1.0, target);
            if let Some(bias) = gradient.bias.get_mut(token as usize) {
                *bias = T::narrow(self.bias[rank]);
            }
        }
    }
}
