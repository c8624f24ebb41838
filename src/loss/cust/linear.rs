//! The loss over hidden states × head in cust's buffers.

use ::cust::memory::DeviceSlice;
use ::cust::stream::Stream;

use super::device_loss::DeviceLoss;
use super::output::LossOutput;
use crate::backend::cust::memory::{address, nonempty_address};
use crate::backend::cust::stream::CustStream;
use crate::backend::cust::{Executor, Logit, driver_error};
use crate::backend::launch::{self, DeviceMatrix, DevicePtr, LinearTensors, Upstream};
use crate::error::check_length;
use crate::loss::MaskedSoftmaxLoss;
use crate::loss::raw::losses;
use crate::{Result, Rows, Temperature};

/// Hidden states, and the head that they are multiplied by.
#[derive(Debug, Clone, Copy)]
pub struct LinearInput<'a, T: Logit> {
    /// The hidden states `[N, H]`.
    pub hidden: &'a DeviceSlice<T>,
    /// The head `[V, H]`.
    pub head: &'a DeviceSlice<T>,
    /// The bias `[V]`; `None` if the head has none.
    pub bias: Option<&'a DeviceSlice<T>>,
}

/// The slices that gradients are written to. All of each slice is overwritten.
#[derive(Debug)]
pub struct LinearGradients<'a, T: Logit> {
    /// The gradient of the hidden states `[N, H]`.
    pub hidden: &'a mut DeviceSlice<T>,
    /// The gradient of the head `[V, H]`; `None` if it is not wanted.
    pub head: Option<&'a mut DeviceSlice<T>>,
    /// The gradient of the bias `[V]`; `None` if it is not wanted.
    pub bias: Option<&'a mut DeviceSlice<T>>,
}

/// A [`MaskedSoftmaxLoss`] over hidden states `[N, H]` × head `[V, H]` in device memory, which does not materialise the
/// logits: only the head rows of valid tokens are read.
#[derive(Debug)]
pub struct LinearLoss<'e> {
    on_device: DeviceLoss<'e>,
    /// H, the width of the hidden states.
    width: usize,
}

impl<'e> LinearLoss<'e> {
    /// Makes a loss over hidden states of `width` elements and a head of `vocabulary` rows, with the sets, the
    /// temperature and the convention of `loss`. Uploads the sets.
    ///
    /// # Errors
    /// Sets with a token outside the vocabulary, a loss with `check_finite`, and the driver's
    /// error.
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

    /// Returns the loss. An adaptive temperature takes a step with the statistics of these rows first, on the
    /// device, and the new τ is used.
    ///
    /// # Errors
    /// Rows that do not fit the token sets, slices of other lengths than the shapes ask for, a width of 0
    /// or beyond 2²⁴, statistics that ATS cannot use, and the driver's error. The temperature
    /// then stays as it was.
    pub fn forward<T: Logit>(
        &mut self,
        stream: &Stream,
        input: LinearInput<T>,
        rows: &Rows,
    ) -> Result<LossOutput> {
        self.stepping(stream, input, rows, None)
    }

    /// Returns the loss at a given temperature, and takes no step.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward), and [`Error::OutOfRange`](crate::Error::OutOfRange) for
    /// `temperature`.
    pub fn forward_at<T: Logit>(
        &self,
        stream: &Stream,
        input: LinearInput<T>,
        rows: &Rows,
        temperature: f64,
    ) -> Result<LossOutput> {
        self.run(stream, input, rows, Some(temperature), None)
    }

    /// Returns the loss, and writes the gradients of the hidden states and, where they are wanted, of head and bias (of the
    /// loss's sum where the reduction is none). Steps the temperature as [`forward`](Self::forward) does.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn value_and_gradients<T: Logit>(
        &mut self,
        stream: &Stream,
        input: LinearInput<T>,
        rows: &Rows,
        gradients: LinearGradients<T>,
    ) -> Result<LossOutput> {
        self.stepping(stream, input, rows, Some(gradients))
    }

    /// Returns the current temperature. After a step this waits for the device.
    ///
    /// # Errors
    /// The driver's error.
    pub fn temperature(&self) -> Result<Temperature> {
        self.on_device.temperature()
    }

    fn stepping<T: Logit>(
        &mut self,
        stream: &Stream,
        input: LinearInput<T>,
        rows: &Rows,
        gradients: Option<LinearGradients<T>>,
    ) -> Result<LossOutput> {
        let output = self.run(stream, input, rows, None, gradients)?;
        self.on_device.take_step(&output)?;
        Ok(output)
    }

    fn run<T: Logit>(
        &self,
        stream: &Stream,
        input: LinearInput<T>,
        rows: &Rows,
        temperature: Option<f64>,
        gradients: Option<LinearGradients<T>>,
    ) -> Result<LossOutput> {
        let DeviceLoss {
            executor,
            loss,
            sets,
            ..
        } = &self.on_device;
        let shape @ [positions, _, width] =
            [rows.positions(), self.on_device.vocabulary, self.width];
        self.check(&input, gradients.as_ref(), positions)?;
        let planned = match &gradients {
            None => launch::LinearGradients::None,
            Some(of) if of.head.is_some() || of.bias.is_some() => {
                launch::LinearGradients::All(&loss.sets)
            }
            Some(_) => launch::LinearGradients::Direct,
        };
        let matrix = |slice: &DeviceSlice<T>| DeviceMatrix {
            address: address(slice),
            row_stride: width as u64,
        };
        let tensors = LinearTensors {
            hidden: matrix(input.hidden),
            head: matrix(input.head),
            base: None,
            bias: input.bias.and_then(|bias| address(bias)),
            sets: sets.view(),
            previous: self.on_device.previous(),
        };
        let to_hidden = gradients.as_ref().and_then(|of| address(of.hidden));
        let direct = to_hidden.filter(|_| planned == launch::LinearGradients::Direct);
        let losses = losses(loss, rows);
        LossOutput::of(executor, stream, losses, |stream, results| {
            let pass = self.on_device.pass::<T>(rows, temperature, results);
            // SAFETY: the lengths were compared above, and the results have the documented sizes. What `stream` holds is freed by
            // `cuMemFree`, which waits for the device. A caller who uses these buffers in another stream must order it (see
            // the module).
            unsafe {
                // This copy comes before any launch, because it would wait for one.
                let ones = vec![1f32; losses];
                let [ones] =
                    launch::Stream::upload(stream, [("upstream", bytemuck::cast_slice(&ones))])?;
                let forward = pass.linear(stream, &tensors, shape, planned, direct)?;
                let (Some(of), launch::LinearGradients::All(_)) = (gradients, planned) else {
                    return Ok(());
                };
                let of_head = [zeroed(stream, of.head)?, zeroed(stream, of.bias)?];
                // Without positions, the others have no memory.
                let (Some(loss), Some(to_hidden)) = (ones, to_hidden) else {
                    return Ok(());
                };
                let upstream = Upstream {
                    loss,
                    temperature: results.temperature,
                };
                forward.issue_hidden_gradient(stream, &upstream, to_hidden)?;
                let inputs = [tensors.hidden, tensors.head];
                forward.issue_head_gradient(stream, inputs, tensors.bias, &upstream, of_head)
            }
        })
    }

    fn check<T: Logit>(
        &self,
        input: &LinearInput<T>,
        gradients: Option<&LinearGradients<T>>,
        positions: usize,
    ) -> Result<()> {
        let (vocabulary, width) = (self.on_device.vocabulary, self.width);
        let [hidden, head, bias] = [[positions, width], [vocabulary, width], [vocabulary, 1]];
        check_length("hidden states", input.hidden.len(), hidden)?;
        check_length("head", input.head.len(), head)?;
        if let Some(slice) = input.bias {
            check_length("head bias", slice.len(), bias)?;
        }
        let Some(gradients) = gradients else {
            return Ok(());
        };
        check_length(
            "gradient of the hidden states",
            gradients.hidden.len(),
            hidden,
        )?;
        if let Some(slice) = &gradients.head {
            check_length("gradient of the head", slice.len(), head)?;
        }
        if let Some(slice) = &gradients.bias {
            check_length("gradient of the head bias", slice.len(), bias)?;
        }
        Ok(())
    }
}

/// Sets a gradient that is wanted to zeros, and returns its address.
///
/// # Safety
/// No work of other streams may read or write the gradient until the stream has executed this.
unsafe fn zeroed<T: Logit>(
    stream: &CustStream,
    gradient: Option<&mut DeviceSlice<T>>,
) -> Result<Option<DevicePtr>> {
    let Some(gradient) = gradient else {
        return Ok(None);
    };
    // SAFETY: the caller's promise; zeros are set in the order of the stream.
    unsafe { gradient.set_zero_async(stream.cust_stream()) }.map_err(driver_error)?;
    nonempty_address(gradient).map(Some)
}
