//! The inputs of one call of a loss besides its tensors, and what its forward pass saves. Both are the same for logits and for hidden
//! states.

use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, DType, Shape, Tensor};

use super::LossOutput;
use super::device_sets::DeviceSetCache;
use super::output::{loss_dtype, scalar, statistics_tensor};
use super::temperature::{Stepped, TemperatureSource};
use crate::backend::batch::Batch;
use crate::backend::cpu::row_weights::normalise;
use crate::backend::cpu::softmax::RowSoftmax;
use crate::{Error, Result, Statistics, Temperature};

/// One call of a loss, without its tensors.
pub(super) struct LossCall {
    pub batch: Batch,
    pub source: TemperatureSource,
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub device_sets: DeviceSetCache,
}

impl LossCall {
    pub fn new(batch: Batch, source: TemperatureSource, device_sets: &DeviceSetCache) -> Self {
        Self {
            batch,
            source,
            device_sets: device_sets.clone(),
        }
    }
}

/// The result of a forward pass on the CPU, for the caller and for the backward pass.
#[derive(Debug)]
pub(super) struct CpuForward {
    /// One for each row of the batch.
    pub softmaxes: Vec<RowSoftmax>,
    pub statistics: Statistics,
    /// The τ of this pass.
    pub temperature: f64,
    /// The temperature after its step; `None` where τ was given.
    pub stepped: Option<Temperature>,
    /// The sum of the branching rows' weights under BEAR; `None` without BEAR.
    pub bear_weight: Option<f64>,
}

impl CpuForward {
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

    /// Returns the factor of the loss of row `index` of the batch in the result.
    fn loss_factor(&self, batch: &Batch, index: usize) -> f64 {
        batch.loss_factor(&batch.rows[index], self.temperature) * self.softmaxes[index].weight()
    }

    /// Returns the factor of p − [v = y] of row `index` of the batch in the gradient of the result.
    pub fn gradient_factor(&self, batch: &Batch, index: usize) -> f64 {
        let factor = batch.gradient_factor(&batch.rows[index], self.temperature);
        factor * self.softmaxes[index].weight()
    }
}

/// What the forward pass of a custom op saves for its caller and for the backward pass, which may read it any number of
/// times.
pub(super) struct Saved<F> {
    forward: OnceLock<F>,
    /// The error of the forward pass. candle's error type would keep only its message.
    error: Mutex<Option<Error>>,
}

impl<F> Default for Saved<F> {
    fn default() -> Self {
        Self {
            forward: OnceLock::new(),
            error: Mutex::default(),
        }
    }
}

impl<F> Saved<F> {
    /// Saves the result of a forward pass, and returns its loss or its error in candle's type.
    pub fn save<L>(&self, result: Result<(F, L)>) -> candle_core::Result<L> {
        match result {
            Ok((forward, loss)) => {
                self.forward.get_or_init(|| forward);
                Ok(loss)
            }
            Err(error) => {
                let message = candle_core::Error::Msg(error.to_string());
                *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(message)
            }
        }
    }

    /// Returns the result of applying the op, with the saved error in place of candle's copy of its message.
    pub fn unwrapped<T>(&self, applied: candle_core::Result<T>) -> Result<T> {
        applied.map_err(|error| {
            let mut own = self.error.lock().unwrap_or_else(PoisonError::into_inner);
            own.take().unwrap_or(Error::Candle(error))
        })
    }

    pub fn forward(&self) -> Result<&F> {
        self.forward.get().ok_or_else(|| {
            let message = "the masked softmax loss has not been run forward";
            Error::Candle(candle_core::Error::Msg(message.into()))
        })
    }
}

/// Returns the loss of the batch: one value, or one for each position.
pub(super) fn loss_values(batch: &Batch, forward: &CpuForward) -> Vec<f64> {
    let rows = (batch.rows.iter().zip(&forward.softmaxes)).enumerate();
    let with_loss = rows.filter(|(_, (row, _))| row.has_loss());
    let losses = with_loss.map(|(index, (row, softmax))| {
        let factor = forward.loss_factor(batch, index);
        (row.position as usize, factor * softmax.loss())
    });
    if batch.reduced {
        // `sum` is not used, because it gives −0 for no row.
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

pub(super) fn output(
    loss: Tensor,
    batch: &Batch,
    forward: &CpuForward,
) -> Result<(LossOutput, Option<Stepped>)> {
    let output = LossOutput {
        temperature: scalar(forward.temperature, loss.device())?,
        statistics: statistics_tensor(&forward.statistics, loss.device())?,
        bear_weight: (forward.bear_weight)
            .map(|weight| scalar(weight, loss.device()))
            .transpose()?,
        loss,
        labelled_rows: batch.labelled_rows,
        branching_rows: batch.branching_rows,
    };
    Ok((output, forward.stepped.clone().map(Stepped::OnHost)))
}

/// The upstream gradient from autograd: one number for the loss, or one for each position.
pub(super) struct Upstream(Vec<f64>);

impl Upstream {
    pub fn new(upstream: &Tensor) -> candle_core::Result<Self> {
        Ok(Self(
            upstream.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?,
        ))
    }

    /// Takes one number for the loss, or one for each position.
    pub fn of(upstream: Vec<f64>) -> Self {
        Self(upstream)
    }

    /// Returns the upstream gradient of the sum of the losses.
    pub fn ones(batch: &Batch) -> Self {
        Self(vec![1.0; if batch.reduced { 1 } else { batch.positions }])
    }

    /// Returns the factor of p − [v = y] of row `index` of the batch, times the upstream gradient.
    pub fn factor(&self, batch: &Batch, forward: &CpuForward, index: usize) -> f64 {
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
