//! The loss over logits.

use ::cust::memory::DeviceSlice;
use ::cust::stream::Stream;

use super::device_loss::{DeviceLoss, check_length, given};
use super::output::LossOutput;
use crate::backend::cust::dense::DenseOperation;
use crate::backend::cust::memory::PassTemperature;
use crate::backend::cust::{Executor, Logit};
use crate::backend::launch::DenseRows;
use crate::loss::MaskedSoftmaxLoss;
use crate::{Result, Rows, Temperature};

/// A [`MaskedSoftmaxLoss`] over logits `[N, V]` in device memory.
#[derive(Debug)]
pub struct DenseLoss<'e>(DeviceLoss<'e>);

impl<'e> DenseLoss<'e> {
    /// A loss over logits of a vocabulary of so many tokens, with the sets, the temperature and the
    /// convention of `loss`. Uploads the sets.
    ///
    /// # Errors
    /// Sets with a token outside the vocabulary, a loss in checked mode, and what the driver says.
    pub fn new(executor: &'e Executor, loss: MaskedSoftmaxLoss, vocabulary: usize) -> Result<Self> {
        DeviceLoss::new(executor, loss, vocabulary).map(Self)
    }

    /// The loss of `logits` `[N, V]`. An adaptive temperature takes a step with the statistics of
    /// these rows first, on the device, and the new τ is used.
    ///
    /// # Errors
    /// Rows that do not fit the token sets, logits that are not as many as the rows' positions × V,
    /// statistics that ATS cannot use, and what the driver says. The temperature then stays as it was.
    pub fn forward<T: Logit>(
        &mut self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
    ) -> Result<LossOutput> {
        self.stepping(stream, logits, rows, None)
    }

    /// The loss at a given temperature; takes no step.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::OutOfRange`](crate::Error::OutOfRange) for
    /// `temperature`.
    pub fn forward_at<T: Logit>(
        &self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
        temperature: f64,
    ) -> Result<LossOutput> {
        let temperature = given(temperature)?;
        let dense = self.0.loss.dense_rows(rows)?;
        self.pass(stream, logits, (rows, &dense), &temperature, None)
    }

    /// The loss, and the gradient of the logits (of the loss's sum where the reduction is none),
    /// written over all of `gradient` `[N, V]`. Steps the temperature as [`forward`](Self::forward)
    /// does.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and for a gradient of another length than the logits.
    pub fn value_and_gradient<T: Logit>(
        &mut self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
        gradient: &mut DeviceSlice<T>,
    ) -> Result<LossOutput> {
        self.stepping(stream, logits, rows, Some(gradient))
    }

    /// The temperature as it stands. After a step this waits for the device.
    ///
    /// # Errors
    /// What the driver says.
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
        let dense = self.0.loss.dense_rows(rows)?;
        let temperature = (self.0).next(|known| dense.next(known))?;
        let output = self.pass(stream, logits, (rows, &dense), &temperature, gradient)?;
        self.0.take_step(&output);
        Ok(output)
    }

    fn pass<T: Logit>(
        &self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        (rows, dense): (&Rows, &DenseRows),
        temperature: &PassTemperature,
        gradient: Option<&mut DeviceSlice<T>>,
    ) -> Result<LossOutput> {
        let shape = [rows.positions(), self.0.vocabulary];
        check_length("logits", logits, shape)?;
        if let Some(gradient) = &gradient {
            check_length("gradient", gradient, shape)?;
        }
        let operation = DenseOperation {
            executor: self.0.executor,
            stream,
            sets: &self.0.sets,
            rows: dense,
            width: self.0.vocabulary,
        };
        // SAFETY: the rows were resolved against the loss's own sets, whose tokens `new` has compared
        // with the vocabulary; the lengths have been compared just now; and whoever works on these
        // buffers in another stream answers for the order (see the module).
        let left = unsafe { operation.run(logits, temperature, gradient) }?;
        Ok(LossOutput::new(left, dense.losses()))
    }
}
