//! What the passes over logits and over hidden states have in common: what they leave behind, and
//! how it becomes a tensor.

use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, DType, Shape, Tensor};

use super::LossOutput;
use super::output::{loss_dtype, scalar, statistics_tensor};
use crate::backend::batch::Batch;
use crate::backend::cpu::row_weights::normalise;
use crate::backend::cpu::softmax::RowSoftmax;
use crate::{Error, Result, Statistics, Temperature};

/// What the forward pass leaves for the caller and for the backward pass.
#[derive(Debug)]
pub(super) struct Forward {
    pub softmaxes: Vec<RowSoftmax>,
    pub statistics: Statistics,
    pub temperature: f64,
    /// Where a stepping temperature went.
    pub stepped: Option<Temperature>,
    /// Under BEAR, the sum of the branching rows' weights.
    bear_weight: Option<f64>,
}

impl Forward {
    pub fn new(
        batch: &Batch,
        mut softmaxes: Vec<RowSoftmax>,
        statistics: Statistics,
        (temperature, stepped): (f64, Option<Temperature>),
    ) -> Self {
        Self {
            bear_weight: normalise(batch, &mut softmaxes),
            softmaxes,
            statistics,
            temperature,
            stepped,
        }
    }

    /// What the loss of a row of the batch is multiplied by in the result.
    fn loss_factor(&self, batch: &Batch, index: usize) -> f64 {
        batch.loss_factor(&batch.rows[index], self.temperature) * self.softmaxes[index].weight()
    }

    /// What p − [v = y] of a row of the batch is multiplied by to give the gradient of the result.
    pub fn gradient_factor(&self, batch: &Batch, index: usize) -> f64 {
        let factor = batch.gradient_factor(&batch.rows[index], self.temperature);
        factor * self.softmaxes[index].weight()
    }
}

/// What a pass inside candle left behind. The backward pass may read it any number of times.
pub(super) struct Passed<F> {
    forward: OnceLock<F>,
    /// candle's error type keeps only the words of ours.
    refusal: Mutex<Option<Error>>,
}

impl<F> Default for Passed<F> {
    fn default() -> Self {
        Self {
            forward: OnceLock::new(),
            refusal: Mutex::default(),
        }
    }
}

impl<F> Passed<F> {
    pub fn keep(&self, pass: Result<F>) -> candle_core::Result<&F> {
        let forward = self.noted(pass)?;
        Ok(self.forward.get_or_init(|| forward))
    }

    /// A result on its way through candle: if it is an error, [`unwrapped`](Self::unwrapped) has it.
    pub fn noted<T>(&self, result: Result<T>) -> candle_core::Result<T> {
        result.map_err(|error| {
            let words = candle_core::Error::Msg(error.to_string());
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            words
        })
    }

    /// The result of the op, with our own error where it was ours.
    pub fn unwrapped<T>(&self, applied: candle_core::Result<T>) -> Result<T> {
        applied.map_err(|error| {
            let refusal = self
                .refusal
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            refusal.unwrap_or(Error::Candle(error))
        })
    }

    pub fn forward(&self) -> Result<&F> {
        self.forward.get().ok_or_else(not_run)
    }
}

/// The loss of the batch: one value, or one for each position.
pub(super) fn loss_values(batch: &Batch, forward: &Forward) -> Vec<f64> {
    let rows = (batch.rows.iter().zip(&forward.softmaxes)).enumerate();
    let counting = rows.filter(|(_, (row, _))| row.counts());
    let losses = counting.map(|(index, (row, softmax))| {
        let factor = forward.loss_factor(batch, index);
        (row.position as usize, factor * softmax.loss())
    });
    if batch.reduced {
        // Not `sum`, which gives −0 for no row.
        return vec![losses.fold(0.0, |sum, (_, loss)| sum + loss)];
    }
    let mut values = vec![0.0; batch.positions];
    losses.for_each(|(position, loss)| values[position] = loss);
    values
}

pub(super) fn loss_shape(batch: &Batch, logits: &[usize]) -> Shape {
    match logits.split_last() {
        Some((_, leading)) if !batch.reduced => Shape::from(leading),
        _ => Shape::from(()),
    }
}

pub(super) fn storage_of(values: Vec<f64>, logits: DType) -> CpuStorage {
    match loss_dtype(logits) {
        DType::F64 => CpuStorage::F64(values),
        _ => CpuStorage::F32(values.into_iter().map(|value| value as f32).collect()),
    }
}

pub(super) fn output(loss: Tensor, batch: &Batch, forward: &Forward) -> Result<LossOutput> {
    Ok(LossOutput {
        temperature: scalar(forward.temperature, loss.device())?,
        statistics: statistics_tensor(&forward.statistics, loss.device())?,
        bear_weight: (forward.bear_weight)
            .map(|weight| scalar(weight, loss.device()))
            .transpose()?,
        loss,
        labelled_rows: batch.labelled_rows,
        branching_rows: batch.branching_rows,
    })
}

/// The upstream gradient as autograd hands it over: for the loss, or for each position's.
pub(super) struct Upstream(Vec<f64>);

impl Upstream {
    pub fn new(upstream: &Tensor) -> candle_core::Result<Self> {
        Ok(Self(
            upstream.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?,
        ))
    }

    /// That of the loss's sum, for the loss itself.
    pub fn ones(batch: &Batch) -> Self {
        Self(vec![1.0; if batch.reduced { 1 } else { batch.positions }])
    }

    /// What p − [v = y] of a row of the batch is multiplied by.
    pub fn factor(&self, batch: &Batch, forward: &Forward, index: usize) -> f64 {
        let of_loss = if batch.reduced {
            0
        } else {
            batch.rows[index].position as usize
        };
        self.0.get(of_loss).map_or(0.0, |upstream| {
            upstream * forward.gradient_factor(batch, index)
        })
    }
}

fn not_run() -> Error {
    Error::Candle(candle_core::Error::Msg(
        "the masked softmax loss has not been run forward".into(),
    ))
}
