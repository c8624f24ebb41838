//! The loss over logits in cust's buffers.

use ::cust::memory::DeviceSlice;
use ::cust::stream::Stream;

use super::device_loss::DeviceLoss;
use super::output::LossOutput;
use crate::backend::cust::memory::address;
use crate::backend::cust::{Executor, Logit};
use crate::backend::launch::{DenseTensors, DeviceMatrix};
use crate::error::check_length;
use crate::loss::MaskedSoftmaxLoss;
use crate::loss::raw::losses;
use crate::{Result, Rows, Temperature};

/// A [`MaskedSoftmaxLoss`] over logits `[N, V]` in device memory.
#[derive(Debug)]
pub struct DenseLoss<'e>(DeviceLoss<'e>);

impl<'e> DenseLoss<'e> {
    /// Makes a loss over logits of a vocabulary of `vocabulary` tokens, with the sets, the temperature and the convention of
    /// `loss`. Uploads the sets.
    ///
    /// # Errors
    /// Sets with a token outside the vocabulary, a loss with `check_finite`, and the driver's error.
    pub fn new(executor: &'e Executor, loss: MaskedSoftmaxLoss, vocabulary: usize) -> Result<Self> {
        DeviceLoss::new(executor, loss, vocabulary).map(Self)
    }

    /// Returns the loss of `logits` `[N, V]`. An adaptive temperature takes a step with the statistics of
    /// these rows first, on the device, and the new τ is used.
    ///
    /// # Errors
    /// Rows that do not fit the token sets, logits that are not as many as the rows' positions × V,
    /// statistics that ATS cannot use, and the driver's error. The temperature then stays as it was.
    pub fn forward<T: Logit>(
        &mut self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
    ) -> Result<LossOutput> {
        self.stepping(stream, logits, rows, None)
    }

    /// Returns the loss at a given temperature, and takes no step.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward), and [`Error::OutOfRange`](crate::Error::OutOfRange) for
    /// `temperature`.
    pub fn forward_at<T: Logit>(
        &self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
        temperature: f64,
    ) -> Result<LossOutput> {
        self.run(stream, logits, rows, Some(temperature), None)
    }

    /// Returns the loss, and writes the gradient of the logits (of the loss's sum where the reduction is none) over all of
    /// `gradient` `[N, V]`. Steps the temperature as [`forward`](Self::forward) does.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward), and for a gradient of another length than the logits.
    pub fn value_and_gradient<T: Logit>(
        &mut self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
        gradient: &mut DeviceSlice<T>,
    ) -> Result<LossOutput> {
        self.stepping(stream, logits, rows, Some(gradient))
    }

    /// Returns the current temperature. After a step this waits for the device.
    ///
    /// # Errors
    /// The driver's error.
    pub fn temperature(&self) -> Result<Temperature> {
        self.0.temperature()
    }

    fn stepping<T: Logit>(
        &mut self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
        gradient: Option<&mut DeviceSlice<T>>,
    ) -> Result<LossOutput> {
        let output = self.run(stream, logits, rows, None, gradient)?;
        self.0.take_step(&output)?;
        Ok(output)
    }

    fn run<T: Logit>(
        &self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
        temperature: Option<f64>,
        gradient: Option<&mut DeviceSlice<T>>,
    ) -> Result<LossOutput> {
        let shape @ [_, width] = [rows.positions(), self.0.vocabulary];
        check_length("logits", logits.len(), shape)?;
        if let Some(gradient) = &gradient {
            check_length("gradient", gradient.len(), shape)?;
        }
        let matrix = |slice: &DeviceSlice<T>| DeviceMatrix {
            address: address(slice),
            row_stride: width as u64,
        };
        let tensors = DenseTensors {
            logits: matrix(logits),
            sets: self.0.sets.view(),
            previous: self.0.previous(),
        };
        let gradient = gradient.map(|gradient| matrix(gradient));
        let losses = losses(&self.0.loss, rows);
        LossOutput::of(self.0.executor, stream, losses, |stream, results| {
            let pass = self.0.pass::<T>(rows, temperature, results);
            // SAFETY: the lengths were compared above, and the results have the documented sizes. What `stream` holds is freed by
            // `cuMemFree`, which waits for the device. A caller who uses these buffers in another stream must order it (see
            // the module).
            unsafe { pass.dense(stream, &tensors, shape, gradient) }.map(drop)
        })
    }
}
