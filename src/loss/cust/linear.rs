//! The loss over hidden states × head.

use ::cust::stream::Stream;

use super::device_loss::{DeviceLoss, check_length, given};
use super::output::LossOutput;
use crate::backend::cust::linear::{LinearGradients, LinearInput, LinearOperation};
use crate::backend::cust::memory::PassTemperature;
use crate::backend::cust::{Executor, Logit};
use crate::backend::launch::LinearRows;
use crate::loss::MaskedSoftmaxLoss;
use crate::{Result, Rows, Temperature};

/// A [`MaskedSoftmaxLoss`] over hidden states `[N, H]` × head `[V, H]` in device memory, without ever
/// making the logits: only the head rows of valid tokens are touched.
#[derive(Debug)]
pub struct LinearLoss<'e> {
    on_device: DeviceLoss<'e>,
    /// H.
    width: usize,
}

impl<'e> LinearLoss<'e> {
    /// A loss over hidden states of `width` elements and a head of `vocabulary` rows, with the sets, the
    /// temperature and the convention of `loss`. Uploads the sets.
    ///
    /// # Errors
    /// Sets with a token outside the vocabulary, a loss in checked mode, and what the driver
    /// says.
    pub fn new(
        executor: &'e Executor,
        loss: MaskedSoftmaxLoss,
        vocabulary: usize,
        width: usize,
    ) -> Result<Self> {
        Ok(Self {
            on_device: DeviceLoss::new(executor, loss, vocabulary)?,
            width,
        })
    }

    /// The loss. An adaptive temperature takes a step with the statistics of these rows first, on the
    /// device, and the new τ is used.
    ///
    /// # Errors
    /// Rows that do not fit the token sets, slices of other lengths than the shapes ask for, a width of 0
    /// or beyond 2²⁴, statistics that ATS cannot use, and what the driver says. The temperature
    /// then stays as it was.
    pub fn forward<T: Logit>(
        &mut self,
        stream: &Stream,
        input: LinearInput<T>,
        rows: &Rows,
    ) -> Result<LossOutput> {
        self.stepping(stream, input, rows, None)
    }

    /// The loss at a given temperature; takes no step.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::OutOfRange`](crate::Error::OutOfRange) for
    /// `temperature`.
    pub fn forward_at<T: Logit>(
        &self,
        stream: &Stream,
        input: LinearInput<T>,
        rows: &Rows,
        temperature: f64,
    ) -> Result<LossOutput> {
        let temperature = given(temperature)?;
        let linear = self.rows(rows)?;
        self.pass(stream, input, linear, &temperature, None)
    }

    /// The loss, and the gradients of the hidden states and, where they are wanted, of head and bias (of
    /// the loss's sum where the reduction is none), each written over all of its slice. Steps the
    /// temperature as [`forward`](Self::forward) does.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn value_and_gradients<T: Logit>(
        &mut self,
        stream: &Stream,
        input: LinearInput<T>,
        rows: &Rows,
        gradients: LinearGradients<T>,
    ) -> Result<LossOutput> {
        self.stepping(stream, input, rows, Some(gradients))
    }

    /// The temperature as it stands. After a step this waits for the device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn temperature(&self) -> Result<Temperature> {
        self.on_device.temperature()
    }

    fn rows(&self, rows: &Rows) -> Result<LinearRows> {
        self.on_device.loss.linear_rows(rows)
    }

    fn stepping<T: Logit>(
        &mut self,
        stream: &Stream,
        input: LinearInput<T>,
        rows: &Rows,
        gradients: Option<LinearGradients<T>>,
    ) -> Result<LossOutput> {
        let linear = self.rows(rows)?;
        let temperature = self.on_device.next(|known| linear.next(known))?;
        let output = self.pass(stream, input, linear, &temperature, gradients)?;
        self.on_device.take_step(&output);
        Ok(output)
    }

    fn pass<T: Logit>(
        &self,
        stream: &Stream,
        input: LinearInput<T>,
        rows: LinearRows,
        temperature: &PassTemperature,
        gradients: Option<LinearGradients<T>>,
    ) -> Result<LossOutput> {
        self.check(&input, gradients.as_ref(), rows.positions())?;
        let losses = rows.losses();
        let operation = LinearOperation {
            executor: self.on_device.executor,
            stream,
            sets: &self.on_device.loss.sets,
            device_sets: &self.on_device.sets,
            rows,
            width: self.width,
        };
        // SAFETY: the rows were resolved against the loss's own sets, whose tokens `new` has compared
        // with the vocabulary; the lengths have been compared just now; and whoever works on these
        // buffers in another stream answers for the order (see the module).
        let left = unsafe { operation.run(&input, temperature, gradients) }?;
        Ok(LossOutput::new(left, losses))
    }

    fn check<T: Logit>(
        &self,
        input: &LinearInput<T>,
        gradients: Option<&LinearGradients<T>>,
        positions: usize,
    ) -> Result<()> {
        let (vocabulary, width) = (self.on_device.vocabulary, self.width);
        let [hidden, head, bias] = [[positions, width], [vocabulary, width], [vocabulary, 1]];
        check_length("hidden states", input.hidden, hidden)?;
        check_length("head", input.head, head)?;
        if let Some(slice) = input.bias {
            check_length("head bias", slice, bias)?;
        }
        let Some(gradients) = gradients else {
            return Ok(());
        };
        check_length("gradient of the hidden states", gradients.hidden, hidden)?;
        if let Some(slice) = &gradients.head {
            check_length("gradient of the head", slice, head)?;
        }
        if let Some(slice) = &gradients.bias {
            check_length("gradient of the head bias", slice, bias)?;
        }
        Ok(())
    }
}
