//! The loss of logits.

use candle_core::Device;

use super::{Element, Matrix, check_positions, check_vocabulary, checked_upstream};
use crate::backend::batch::Batch;
use crate::backend::cpu::dense::{self, Gradient, Logits};
use crate::error::check_length;
use crate::loss::MaskedSoftmaxLoss;
use crate::loss::call::{CpuForward, LossCall, loss_values};
use crate::loss::dense::cpu;
use crate::loss::temperature::{Stepped, TemperatureSource};
use crate::temperature::check_temperature;
use crate::{Result, Rows, Statistics};

/// A forward pass over logits `[N, V]`.
#[derive(Debug)]
pub struct DenseForward {
    batch: Batch,
    forward: CpuForward,
    /// The width V of the logits.
    vocabulary: usize,
}

impl DenseForward {
    /// Computes the loss of logits `[N, V]`, and the temperature's step, as
    /// [`MaskedSoftmaxLoss::forward`] does.
    ///
    /// # Errors
    /// Those of [`MaskedSoftmaxLoss::forward`].
    pub fn new<T: Element>(
        loss: &mut MaskedSoftmaxLoss,
        logits: Matrix<T>,
        rows: &Rows,
    ) -> Result<Self> {
        let source = loss.temperature.stepping(&Device::Cpu)?;
        let pass = Self::with(loss, logits, rows, source)?;
        loss.take_step(pass.forward.stepped.clone().map(Stepped::OnHost));
        Ok(pass)
    }

    /// Computes the loss at a given temperature, and takes no step.
    ///
    /// # Errors
    /// Those of [`MaskedSoftmaxLoss::forward_at`].
    pub fn at<T: Element>(
        loss: &MaskedSoftmaxLoss,
        logits: Matrix<T>,
        rows: &Rows,
        temperature: f64,
    ) -> Result<Self> {
        check_temperature("temperature", temperature)?;
        Self::with(loss, logits, rows, TemperatureSource::Given(temperature))
    }

    fn with<T: Element>(
        loss: &MaskedSoftmaxLoss,
        logits: Matrix<T>,
        rows: &Rows,
        source: TemperatureSource,
    ) -> Result<Self> {
        let batch = loss.batch(rows)?;
        check_positions(&batch, logits.rows, logits.width)?;
        check_vocabulary(&batch, logits.width)?;
        let call = LossCall::new(batch, source, &loss.device_sets);
        let forward = cpu::run(view(logits), &call, None)?;
        let LossCall { batch, .. } = call;
        Ok(Self {
            batch,
            forward,
            vocabulary: logits.width,
        })
    }

    /// Returns the loss: one number, or one for each position where the reduction is none.
    #[must_use]
    pub fn loss(&self) -> Vec<f64> {
        loss_values(&self.batch, &self.forward)
    }

    /// Returns the τ that the pass used.
    #[must_use]
    pub fn temperature(&self) -> f64 {
        self.forward.temperature
    }

    /// Returns the statistics of the rows, which an adaptive temperature takes a step with.
    #[must_use]
    pub fn statistics(&self) -> &Statistics {
        &self.forward.statistics
    }

    /// Returns the sum of the row weights under BEAR, as
    /// [`LossOutput::bear_weight`](crate::LossOutput::bear_weight) has it.
    #[must_use]
    pub fn bear_weight(&self) -> Option<f64> {
        self.forward.bear_weight
    }

    /// Writes the gradient `[N, V]` of the logits, which must be those of the forward pass. `upstream` is the gradient of
    /// the loss, as many numbers as [`loss`](Self::loss) returns. `gradient` is overwritten whole, whatever it holds.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`](crate::Error::LengthMismatch) and
    /// [`Error::PositionMismatch`](crate::Error::PositionMismatch) where the arguments do not fit each other or the forward pass.
    pub fn backward<T: Element>(
        &self,
        logits: Matrix<T>,
        upstream: &[f64],
        gradient: &mut [T],
    ) -> Result<()> {
        check_positions(&self.batch, logits.rows, logits.width)?;
        check_length("width of the logits", logits.width, [self.vocabulary, 1])?;
        check_length("gradient", gradient.len(), [logits.rows, logits.width])?;
        let upstream = checked_upstream(&self.batch, upstream)?;
        dense::backward(
            view(logits),
            &self.batch,
            &self.forward.softmaxes,
            self.forward.temperature,
            |index| upstream.factor(&self.batch, &self.forward, index),
            Gradient {
                values: gradient,
                zeroed: false,
            },
        );
        Ok(())
    }
}

fn view<'a, T>(logits: Matrix<'a, T>) -> Logits<'a, T> {
    Logits {
        values: logits.values,
        stride: logits.stride,
        vocabulary: logits.width,
    }
}
