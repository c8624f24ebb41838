//! The plain language-model loss over hidden states and a head. The head is processed in chunks of tokens with an online
//! softmax (as in flash attention), so that only one chunk of logits is in memory at a time.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::head_gradient::HeadGradient;
use super::{Head, Hidden, SavedGradient, Wanted, gather_hidden, loss_position};
use crate::backend::batch::{Batch, BatchRow};
use crate::backend::cpu::element::{Element, Real};
use crate::backend::cpu::matrix::{Matrix, multiply, padded};
use crate::backend::cpu::row_weights::Largest;
use crate::backend::cpu::softmax::{RowSoftmax, check_finite};
use crate::backend::cpu::vector;
use crate::{Result, Statistics};

/// The number of logits of a chunk, which determines its number of tokens.
const CHUNK_LOGITS: usize = 1 << 21;
/// The smallest number of tokens of a chunk. With fewer, the GEMMs of large batches would be too narrow to be fast.
const LEAST_CHUNK: usize = 64;

/// A batch in which the token set of every row is `0..size`.
pub(crate) struct WholeVocabulary<'a, T: Element> {
    head: &'a Head<'a, T>,
    batch: &'a Batch,
    size: usize,
    /// The hidden states of the rows, `[rows, H]` with row stride `padded(H)`.
    hidden: Vec<T::Real>,
}

/// The head rows of a chunk, which must be in one part of the head. They are borrowed if they need no widening.
struct ChunkHead<'a, R: Clone> {
    values: Cow<'a, [R]>,
    stride: usize,
    rows: usize,
    width: usize,
}

/// The online softmax of one row over the tokens so far, without the target.
struct RunningSoftmax<R> {
    /// The largest logit.
    maximum: f64,
    /// Σ exp((z_v − maximum)/τ).
    others: f64,
    /// The target's logit; 0 before its chunk.
    target: f64,
    /// The largest logits, the target's included; `None` if BEAR does not need them.
    largest: Option<Largest<R>>,
}

impl<'a, T: Element> WholeVocabulary<'a, T> {
    /// Gathers the hidden states of a batch over the whole vocabulary. Returns `None` if the batch has listed sets.
    pub fn new(hidden: Hidden<T>, head: &'a Head<'a, T>, batch: &'a Batch) -> Option<Self> {
        Some(Self {
            head,
            batch,
            size: batch.whole_vocabulary()?,
            hidden: gather_hidden(hidden, batch.rows.iter().map(|row| Some(row.position))),
        })
    }

    /// Computes the statistics in a pass of its own, because the softmax depends on the temperature. This pass also checks that
    /// logits are finite.
    pub fn statistics(&self) -> Result<Statistics> {
        let rows = &self.batch.rows;
        if !self.batch.checked && !rows.iter().any(|row| row.in_statistics) {
            return Ok(Statistics::default());
        }
        // The moments of a row's chunks are merged as if they were rows.
        let mut parts = vec![Statistics::default(); rows.len()];
        let mut targets = vec![0.0; rows.len()];
        for chunk in self.chunks() {
            let mut logits = self.logits(&ChunkHead::new(self.head, &chunk), &chunk);
            let results: Vec<Result<()>> = (logits
                .par_chunks_mut(chunk.len())
                .zip(rows)
                .zip(&mut parts)
                .zip(&mut targets))
            .map(|(((logits, row), part), target)| {
                if self.batch.checked {
                    check_finite(row, chunk.start as u32.., logits)?;
                }
                if let Some(&logit) = rank_in(row, &chunk).and_then(|rank| logits.get(rank)) {
                    *target = logit.into();
                }
                let (mean, deviations) = vector::moments(logits);
                *part = part.merge(&Statistics::of_moments(logits.len(), mean, deviations, 0.0));
                Ok(())
            })
            .collect();
            // The results are collected sequentially, so that of several errors always the same is reported.
            results.into_iter().collect::<Result<()>>()?;
        }
        let whole = rows
            .iter()
            .zip(parts.iter().zip(targets))
            .filter(|(row, _)| row.in_statistics);
        Ok(whole
            .map(|(_, (part, target))| {
                Statistics::of_moments(self.size, part.mean(), part.deviations(), target)
            })
            .fold(Statistics::default(), |sum, row| sum.merge(&row)))
    }

    /// Computes the softmax of every row and, if it is wanted, the gradient of the hidden states in the same pass. When a chunk
    /// has a larger maximum than those before, the sums so far are rescaled.
    pub fn softmax(
        &self,
        temperature: f64,
        wanted: Wanted,
    ) -> (Vec<RowSoftmax>, SavedGradient<T::Real>) {
        let width = self.head.width;
        let rows = &self.batch.rows;
        let running = rows
            .iter()
            .map(|row| RunningSoftmax::new(self.batch, row, self.size));
        let mut running: Vec<RunningSoftmax<T::Real>> = running.collect();
        let mut gradient = vec![T::Real::ZERO; if wanted.hidden { rows.len() * width } else { 0 }];
        for chunk in self.chunks() {
            let head_rows = ChunkHead::new(self.head, &chunk);
            let mut logits = self.logits(&head_rows, &chunk);
            let scales: Vec<f64> = (logits
                .par_chunks_mut(chunk.len())
                .zip(rows)
                .zip(&mut running))
            .map(|((logits, row), running)| running.add(logits, row, &chunk, temperature))
            .collect();
            if wanted.hidden {
                for (gradient, &scale) in gradient.chunks_mut(width.max(1)).zip(&scales) {
                    vector::scale(gradient, scale);
                }
                let left = Matrix::new(&logits, rows.len(), chunk.len(), chunk.len());
                multiply(left, head_rows.matrix(), &mut gradient, true);
            }
        }
        let softmaxes: Vec<RowSoftmax> = (running.iter_mut())
            .map(|row| row.softmax(self.batch, temperature))
            .collect();
        if wanted.hidden {
            self.finish_gradient(&running, &softmaxes, temperature, &mut gradient);
        }
        (softmaxes, SavedGradient::Hidden(gradient))
    }

    /// Divides Σ e_v W_v by the softmax's sum and adds (p_y − 1)·W_y of the target.
    fn finish_gradient(
        &self,
        running: &[RunningSoftmax<T::Real>],
        softmaxes: &[RowSoftmax],
        temperature: f64,
        gradient: &mut [T::Real],
    ) {
        let mut widened = Vec::new();
        let rows = self.batch.rows.iter().zip(running).zip(softmaxes);
        for (((row, running), softmax), gradient) in
            rows.zip(gradient.chunks_mut(self.head.width.max(1)))
        {
            let scale = softmax.inverse_sum() * softmax.relative_to(running.maximum, temperature);
            vector::scale(gradient, scale);
            let target = T::widened(self.head.row(row.rank), &mut widened);
            vector::add_scaled(
                gradient,
                T::Real::from_f64(softmax.target_gradient()),
                target,
            );
        }
    }

    /// Returns chunks that are each in one part of the head.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<T> {
        let (first_trained, rows) = (self.head.first_trained(), self.batch.rows.len());
        let frozen = chunks(0..first_trained.min(self.size), rows);
        frozen.chain(chunks(first_trained..self.size, rows))
    }

    fn logits(&self, head_rows: &ChunkHead<T::Real>, chunk: &Range<usize>) -> Vec<T::Real> {
        logits(
            self.head,
            head_rows,
            &self.hidden,
            self.batch.rows.len(),
            chunk,
        )
    }
}

/// Computes the gradient of the head from the logits of the tokens that take one, which are computed again chunk by chunk. Every
/// row of the gradient is written once.
pub(crate) fn whole_vocabulary_head_gradient<T: Element>(
    softmaxes: &[RowSoftmax],
    hidden: Hidden<T>,
    head: &Head<T>,
    batch: &Batch,
    temperature: f64,
    factor: impl Fn(usize) -> f64 + Sync,
    gradient: HeadGradient<T>,
) {
    let size = batch.whole_vocabulary().unwrap_or(0);
    let (rows, width, first_token) = (&batch.rows, head.width, gradient.first_token);
    let hidden = gather_hidden(hidden, rows.iter().map(loss_position));
    for chunk in chunks(first_token..size, rows.len()) {
        let head_rows = ChunkHead::new(head, &chunk);
        let mut dlogits = logits(head, &head_rows, &hidden, rows.len(), &chunk);
        (dlogits.par_chunks_mut(chunk.len()).zip(rows).zip(softmaxes))
            .enumerate()
            .for_each(|(index, ((logits, row), softmax))| match row.has_loss() {
                true => {
                    let rank = rank_in(row, &chunk);
                    softmax.gradient_of_chunk(logits, rank, temperature, factor(index));
                }
                false => logits.fill(T::Real::ZERO),
            });
        let left = Matrix::new(&dlogits, rows.len(), chunk.len(), chunk.len());
        let right = Matrix::new(&hidden, rows.len(), width, padded(width));
        let mut result = vec![T::Real::ZERO; chunk.len() * width];
        multiply(left.transposed(), right, &mut result, false);
        let target = &mut gradient.head[(chunk.start - first_token) * width..][..result.len()];
        vector::scale_into(&result, 1.0, target);
        if let Some(bias) = gradient.bias.get_mut(chunk) {
            for (index, bias) in bias.iter_mut().enumerate() {
                let column = dlogits.iter().skip(index).step_by(left.columns);
                *bias = T::narrow(column.fold(T::Real::ZERO, |sum, &dlogit| sum + dlogit));
            }
        }
    }
}

fn chunks(tokens: Range<usize>, rows: usize) -> impl Iterator<Item = Range<usize>> {
    // Without rows there are no logits.
    let end = if rows == 0 { 0 } else { tokens.end };
    let length = (CHUNK_LOGITS / rows.max(1)).max(LEAST_CHUNK);
    (tokens.start..end)
        .step_by(length)
        .map(move |start| start..(start + length).min(end))
}

impl<'a, R: Real> ChunkHead<'a, R> {
    fn new<T: Element<Real = R>>(head: &Head<'a, T>, chunk: &Range<usize>) -> Self {
        let (rows, width) = (chunk.len(), head.width);
        let (values, stride) = head.rows_from(chunk.start);
        match T::as_real(values) {
            Some(values) => Self {
                values: Cow::Borrowed(values),
                stride,
                rows,
                width,
            },
            None => Self {
                values: Cow::Owned(head.gather(chunk.start as u32..chunk.end as u32).values),
                stride: padded(width),
                rows,
                width,
            },
        }
    }

    fn matrix(&self) -> Matrix<'_, R> {
        Matrix::new(&self.values, self.rows, self.width, self.stride)
    }
}

/// Computes the logits `[rows, chunk]`.
fn logits<T: Element>(
    head: &Head<T>,
    head_rows: &ChunkHead<T::Real>,
    hidden: &[T::Real],
    rows: usize,
    chunk: &Range<usize>,
) -> Vec<T::Real> {
    let mut logits = vec![T::Real::ZERO; rows * chunk.len()];
    let left = Matrix::new(hidden, rows, head.width, padded(head.width));
    multiply(left, head_rows.matrix().transposed(), &mut logits, false);
    if let Some(bias) = head.bias.get(chunk.clone()) {
        for logits in logits.chunks_mut(chunk.len()) {
            for (logit, bias) in logits.iter_mut().zip(bias) {
                *logit += bias.widen();
            }
        }
    }
    logits
}

/// Returns the index of a row's target in the chunk, if it is there.
fn rank_in(row: &BatchRow, chunk: &Range<usize>) -> Option<usize> {
    let rank = row.rank as usize;
    chunk.contains(&rank).then(|| rank - chunk.start)
}

impl<R: Real> RunningSoftmax<R> {
    fn new(batch: &Batch, row: &BatchRow, size: usize) -> Self {
        let bear = batch.bear.filter(|_| row.has_loss());
        Self {
            maximum: f64::NEG_INFINITY,
            others: 0.0,
            target: 0.0,
            largest: bear.map(|bear| Largest::new(bear.beams, size)),
        }
    }

    /// Returns the softmax after all tokens have been added.
    fn softmax(&mut self, batch: &Batch, temperature: f64) -> RowSoftmax {
        let softmax = RowSoftmax::from_parts(self.maximum, self.others, self.target, temperature);
        match (batch.bear, &mut self.largest) {
            (Some(bear), Some(largest)) => {
                softmax.with_weight(bear.weight(self.target, largest.last().into(), temperature))
            }
            _ => softmax,
        }
    }

    /// Adds the logits of a chunk, and replaces them by their exponentials relative to the new maximum. Returns the factor that
    /// rescales the sums so far.
    fn add(
        &mut self,
        logits: &mut [R],
        row: &BatchRow,
        chunk: &Range<usize>,
        temperature: f64,
    ) -> f64 {
        if let Some(largest) = &mut self.largest {
            largest.add(logits);
        }
        if let Some(rank) = rank_in(row, chunk) {
            self.target = logits[rank].into();
            logits[rank] = R::NEG_INFINITY;
        }
        let maximum = vector::maximum(logits).into().max(self.maximum);
        if maximum == f64::NEG_INFINITY {
            // All logits so far are −∞, apart from the target's, so their exponentials are 0.
            let nan = logits.iter().any(|&logit| logit.into().is_nan());
            logits.fill(R::ZERO);
            self.others += if nan { f64::NAN } else { 0.0 };
            return 1.0;
        }
        let scale = ((self.maximum - maximum) / temperature).exp();
        let sum = vector::exponentials(logits, maximum, temperature.recip());
        self.others = self.others * scale + sum;
        self.maximum = maximum;
        scale
    }
}
