//! The gradient of the head over listed sets: for every token v of the batch, the sum of factor·(p_v − \[v = y\])·hidden over
//! the rows whose sets contain v, in the order of the slots. The tokens of frozen rows take none. The others are the end of each
//! set, because sets are sorted.

use rayon::prelude::*;

use super::plan::Plan;
use super::{Hidden, LogitGradients, gather_hidden, loss_position};
use crate::backend::batch::Batch;
use crate::backend::cpu::element::{Element, Real};
use crate::backend::cpu::matrix::{Matrix, multiply, padded};
use crate::backend::cpu::vector;

/// The destinations of the gradients of the head and of its bias `[V]`, which is empty if it is not wanted. Both hold zeros.
pub(crate) struct HeadGradient<'a, T> {
    /// The gradient of the rows from that of `first_token` on: `[V, H]`, or that of the added rows `[V′, H]`.
    pub head: &'a mut [T],
    pub bias: &'a mut [T],
    pub width: usize,
    /// The first token whose row takes a gradient.
    pub first_token: usize,
}

/// The gradients of the tokens of the batch, in the type that they are computed in.
struct TokenSums<R> {
    /// The distinct tokens, ascending.
    tokens: Vec<u32>,
    /// The gradients of their head rows `[tokens, H]`.
    head: Vec<R>,
    /// The gradients of their biases `[tokens]`.
    bias: Vec<R>,
    width: usize,
    first_token: usize,
}

/// An entry of the inverted index from tokens to ragged slots.
struct IndexEntry<R> {
    /// The index of the token in `TokenSums::tokens`.
    rank: u32,
    slot: u32,
    /// The gradient of the token's logit in this slot.
    dlogit: R,
}

/// Computes the gradient of the head. `factor` returns the factor of p − \[v = y\] of the row with this index in the batch.
pub(crate) fn head_gradient<T: Element>(
    dlogits: &LogitGradients<T::Real>,
    hidden: Hidden<T>,
    batch: &Batch,
    factor: impl Fn(usize) -> f64,
    gradient: HeadGradient<T>,
) {
    let mut sums = TokenSums::new(batch, &gradient);
    if sums.tokens.is_empty() {
        return;
    }
    let plan = &dlogits.plan;
    let dlogits = scaled_gradients(dlogits, factor);
    let positions = (plan.rows.iter()).map(|&row| loss_position(&batch.rows[row as usize]));
    let hidden = gather_hidden(hidden, positions);
    sums.add_groups(plan, batch, &hidden, &dlogits);
    sums.add_ragged(plan, batch, &hidden, &dlogits);
    sums.write(gradient);
}

fn scaled_gradients<R: Real>(dlogits: &LogitGradients<R>, factor: impl Fn(usize) -> f64) -> Vec<R> {
    let plan = &dlogits.plan;
    let mut scaled = Vec::with_capacity(dlogits.values.len());
    for (slot, &row) in plan.rows.iter().enumerate() {
        let factor = R::from_f64(factor(row as usize));
        let dlogits = &dlogits.values[plan.starts[slot]..plan.starts[slot + 1]];
        scaled.extend(dlogits.iter().map(|&dlogit| dlogit * factor));
    }
    scaled
}

impl<R: Real> TokenSums<R> {
    fn new<T>(batch: &Batch, gradient: &HeadGradient<T>) -> Self {
        let (width, first_token) = (gradient.width, gradient.first_token);
        let mut sets: Vec<u32> = batch.rows.iter().map(|row| row.set).collect();
        sets.sort_unstable();
        sets.dedup();
        let mut tokens: Vec<u32> = (sets.iter())
            .flat_map(|&set| batch.sets.get(set).into_iter().flat_map(|set| set.iter()))
            .filter(|&token| token as usize >= first_token)
            .collect();
        tokens.par_sort_unstable();
        tokens.dedup();
        Self {
            head: vec![R::ZERO; tokens.len() * width],
            bias: vec![R::ZERO; tokens.len()],
            tokens,
            width,
            first_token,
        }
    }

    /// Returns the tokens of a set that take a gradient, and the rank of the first of them.
    fn trained<'s>(&self, set: &'s [u32]) -> (&'s [u32], usize) {
        let first_rank = set.partition_point(|&token| (token as usize) < self.first_token);
        (&set[first_rank..], first_rank)
    }

    /// Returns the index of a token, which must be in a set of the batch.
    fn rank(&self, token: u32) -> usize {
        self.tokens.partition_point(|&other| other < token)
    }

    fn add_groups(&mut self, plan: &Plan, batch: &Batch, hidden: &[R], dlogits: &[R]) {
        let width = self.width;
        let stride = padded(width);
        for group in &plan.groups {
            let set = batch.listed(plan.row(batch, group.start));
            let (tokens, first_rank) = self.trained(set);
            if tokens.is_empty() {
                continue;
            }
            let dlogits = &dlogits[plan.scores(group)][first_rank..];
            let left = Matrix::new(dlogits, group.len(), tokens.len(), set.len());
            let hidden = &hidden[group.start * stride..group.end * stride];
            let right = Matrix::new(hidden, group.len(), width, stride);
            let mut products = vec![R::ZERO; tokens.len() * width];
            multiply(left.transposed(), right, &mut products, false);
            for (index, &token) in tokens.iter().enumerate() {
                let rank = self.rank(token);
                let sum = &mut self.head[rank * width..][..width];
                vector::add_scaled(sum, R::from_f64(1.0), &products[index * width..][..width]);
                for dlogits in dlogits.chunks(set.len()) {
                    self.bias[rank] += dlogits[index];
                }
            }
        }
    }

    /// Adds the ragged slots through an inverted index, in parallel over the tokens and for each token in the order of the
    /// slots.
    fn add_ragged(&mut self, plan: &Plan, batch: &Batch, hidden: &[R], dlogits: &[R]) {
        let width = self.width;
        let stride = padded(width);
        let mut index = Vec::new();
        for slot in plan.ragged() {
            let (tokens, first_rank) = self.trained(batch.listed(plan.row(batch, slot)));
            let dlogits = &dlogits[plan.starts[slot] + first_rank..plan.starts[slot + 1]];
            index.extend(
                tokens
                    .iter()
                    .zip(dlogits)
                    .map(|(&token, &dlogit)| IndexEntry {
                        rank: self.rank(token) as u32,
                        slot: slot as u32,
                        dlogit,
                    }),
            );
        }
        index.par_sort_unstable_by_key(|entry| (entry.rank, entry.slot));
        let of_rank = |rank: usize| {
            let start = index.partition_point(|entry| (entry.rank as usize) < rank);
            let end = index.partition_point(|entry| (entry.rank as usize) <= rank);
            &index[start..end]
        };
        (self
            .head
            .par_chunks_mut(width.max(1))
            .zip(&mut self.bias)
            .enumerate())
        .for_each(|(rank, (sum, bias))| {
            for entry in of_rank(rank) {
                let hidden = &hidden[entry.slot as usize * stride..][..width];
                vector::add_scaled(sum, entry.dlogit, hidden);
                *bias += entry.dlogit;
            }
        });
    }

    fn write<T: Element<Real = R>>(&self, gradient: HeadGradient<T>) {
        let width = self.width;
        for (rank, &token) in self.tokens.iter().enumerate() {
            let row = token as usize - self.first_token;
            let target = &mut gradient.head[row * width..][..width];
            vector::scale_into(&self.head[rank * width..][..width], 1.0, target);
            if let Some(bias) = gradient.bias.get_mut(token as usize) {
                *bias = T::narrow(self.bias[rank]);
            }
        }
    }
}
