//! The losses over addresses in device memory, issued to any stream that runs launch plans: that of cust, of another library
//! (feature `raw-cuda`), or of the emulator.
//!
//! Nothing here allocates results or gradients, waits for a device, or keeps a temperature: the modules built on it do.

use crate::backend::launch::{
    BatchTotals, DensePlan, DenseSaved, LinearPlan, LinearSaved, Stream, TemperaturePlan,
};
pub use crate::backend::launch::{
    DenseTensors, DeviceLimits, DeviceMatrix, DevicePtr, Element, ForwardResults, HeadBase,
    LinearGradients, LinearTensors, TokenSetsView, Upstream,
};
#[cfg(feature = "raw-cuda")]
pub use crate::backend::{
    launch::Lifetime,
    launcher::{Launcher, raw::RawStream},
};
use crate::temperature::check_temperature;
use crate::{Error, MaskedSoftmaxLoss, Reduction, Result, Rows, Temperature, TokenSets};

/// A forward pass to be issued.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// The loss, with its temperature as far as the host knows it.
    pub loss: &'a MaskedSoftmaxLoss,
    /// The rows of the batch.
    pub rows: &'a Rows,
    /// The temperature; `None` for that of the loss, which takes a step if it is adaptive.
    pub temperature: Option<f64>,
    /// The limits of the device.
    pub limits: &'a DeviceLimits,
    /// The element type of the tensors.
    pub element: Element,
    /// The addresses that the results are written to.
    pub results: ForwardResults,
}

impl Pass<'_> {
    /// Issues the pass over logits `[N, V]`, with the token sets of the loss in `tensors`. If `gradient` is given, the gradient of
    /// the logits is written there, for an upstream gradient of 1.
    ///
    /// # Safety
    /// The addresses must be of buffers of these shapes on the device of `stream`, and the sets those of the loss. Nothing else may
    /// read, write or free them until the launches are done.
    ///
    /// # Errors
    /// Rows that do not fit the sets or the logits, a loss with `check_finite`, statistics that ATS cannot use, and those of
    /// `stream`.
    pub unsafe fn dense<S: Stream>(
        &self,
        stream: &mut S,
        tensors: &DenseTensors,
        [positions, vocabulary]: [usize; 2],
        gradient: Option<DeviceMatrix>,
    ) -> Result<DenseForward, S::Error> {
        self.check([positions, vocabulary], vocabulary)?;
        let rows = self.loss.dense_rows(self.rows)?;
        let temperature = self.temperature(&rows.totals)?;
        let plan = DensePlan::new(rows, self.element, vocabulary, self.limits)?;
        // SAFETY: the rows were resolved against the sets of the loss, whose tokens are below V. The rest is the caller's promise.
        let saved =
            unsafe { plan.issue_forward(stream, tensors, temperature, gradient, &self.results) }?;
        Ok(DenseForward { plan, saved })
    }

    /// Issues the pass over hidden states `[N, H]` and a head `[V, H]`, with the token sets of the loss in `tensors`. `width` is H.
    /// Of a head in two parts, V counts the rows of both. Under [`LinearGradients::Direct`] the gradient of the hidden states is
    /// written to `direct`, for an upstream gradient of 1.
    ///
    /// # Safety
    /// That of [`dense`](Self::dense).
    ///
    /// # Errors
    /// Those of [`dense`](Self::dense), and a width of 0 or beyond 2²⁴.
    pub unsafe fn linear<S: Stream>(
        &self,
        stream: &mut S,
        tensors: &LinearTensors,
        [positions, vocabulary, width]: [usize; 3],
        gradients: LinearGradients,
        direct: Option<DevicePtr>,
    ) -> Result<LinearForward, S::Error> {
        self.check([positions, width], vocabulary)?;
        let rows = self.loss.linear_rows(self.rows)?;
        let temperature = self.temperature(&rows.totals)?;
        let (element, most) = (self.element, LinearPlan::MOST_SCORES);
        let plan = LinearPlan::new(rows, element, width, gradients, self.limits, most)?;
        // SAFETY: as in `dense`.
        let saved =
            unsafe { plan.issue_forward(stream, tensors, temperature, direct, &self.results) }?;
        Ok(LinearForward { plan, saved })
    }

    fn check(&self, shape: [usize; 2], vocabulary: usize) -> Result<()> {
        check_loss(self.loss, vocabulary)?;
        match self.rows.positions() == shape[0] {
            true => Ok(()),
            false => Err(Error::PositionMismatch {
                rows: self.rows.positions(),
                positions: shape[0],
                shape: shape.to_vec(),
            }),
        }
    }

    fn temperature(&self, totals: &BatchTotals) -> Result<TemperaturePlan> {
        match self.temperature {
            None => totals.next(self.loss.temperature.known()),
            Some(temperature) => {
                check_temperature("temperature", temperature)?;
                Ok(TemperaturePlan::at(temperature))
            }
        }
    }
}

/// Returns the tables of token sets for a device, offsets and tokens, which kernels look at no bounds of; `None` for the whole
/// vocabulary.
///
/// # Errors
/// [`Error::Malformed`] for sets of a mapped file that are damaged.
pub fn set_tables(sets: &TokenSets) -> Result<Option<(&[u32], &[u32])>> {
    sets.to_upload()
}

/// Returns the view of token sets whose [tables](set_tables) follow each other from `first` on.
#[must_use]
pub fn sets_at(sets: &TokenSets, first: Option<DevicePtr>) -> TokenSetsView {
    let offsets = sets.as_raw().and(first);
    let offset_bytes = sets.as_raw().map_or(0, |(offsets, _)| size_of_val(offsets));
    TokenSetsView {
        offsets,
        tokens: offsets.map(|offsets| offsets.offset(offset_bytes as u64)),
        vocabulary: u64::from(sets.max_token()) + 1,
    }
}

/// Returns the number of elements of the loss of rows: one, or one for each position.
#[must_use]
pub fn losses(loss: &MaskedSoftmaxLoss, rows: &Rows) -> usize {
    match loss.convention.reduction {
        Reduction::None => rows.positions(),
        _ => 1,
    }
}

/// Refuses a loss that kernels cannot compute over this vocabulary.
pub(super) fn check_loss(loss: &MaskedSoftmaxLoss, vocabulary: usize) -> Result<()> {
    let token = loss.sets.max_token();
    if token as usize >= vocabulary {
        return Err(Error::TokenOutsideVocabulary { token, vocabulary });
    }
    if loss.checked {
        return Err(Error::Unsupported {
            what: "loss",
            expected: "a loss without check_finite, which looks at logits on the host".into(),
            actual: "a loss with check_finite".into(),
        });
    }
    Ok(())
}

/// Counts the step that an adaptive temperature took on the device, where its τ is. Returns whether there was one.
pub fn count_step(loss: &mut MaskedSoftmaxLoss) -> Result<bool> {
    let temperature = loss.temperature_mut()?;
    let steps = matches!(temperature, Temperature::Adaptive(_));
    if steps {
        temperature.count_step();
    }
    Ok(steps)
}

/// A forward pass over logits that was issued, and what it saved for the backward pass in kept memory of its stream.
#[derive(Debug)]
pub struct DenseForward {
    plan: DensePlan,
    saved: DenseSaved,
}

impl DenseForward {
    /// Issues the backward pass, which overwrites all of `gradient`. The logits must have the values of the forward pass.
    ///
    /// # Safety
    /// That of [`Pass::dense`], and the kept memory and the results of the forward pass must be unchanged.
    ///
    /// # Errors
    /// Those of `stream`.
    pub unsafe fn issue_backward<S: Stream>(
        &self,
        stream: &mut S,
        logits: DeviceMatrix,
        upstream: &Upstream,
        gradient: DeviceMatrix,
    ) -> Result<(), S::Error> {
        let saved = self.saved.with_logits(logits);
        // SAFETY: the caller's promise.
        unsafe { self.plan.issue_backward(stream, &saved, upstream, gradient) }
    }
}

/// A forward pass over hidden states and a head that was issued, and what it saved for the backward passes in kept memory of its
/// stream.
#[derive(Debug)]
pub struct LinearForward {
    plan: LinearPlan,
    saved: LinearSaved,
}

impl LinearForward {
    /// Issues the backward pass that overwrites the gradient of the hidden states `[N, H]`.
    ///
    /// # Safety
    /// That of [`DenseForward::issue_backward`].
    ///
    /// # Errors
    /// Those of `stream`.
    pub unsafe fn issue_hidden_gradient<S: Stream>(
        &self,
        stream: &mut S,
        upstream: &Upstream,
        gradient: DevicePtr,
    ) -> Result<(), S::Error> {
        // SAFETY: the caller's promise.
        unsafe {
            self.plan
                .issue_hidden_gradient(stream, &self.saved, upstream, gradient)
        }
    }

    /// Issues the backward pass that writes the gradients of the head `[V, H]`, or of its added rows `[V′, H]`, and of its bias
    /// `[V]`, which must hold zeros; `None` for one that is not wanted. Hidden states, head and bias must have the values of the forward pass.
    ///
    /// # Safety
    /// That of [`DenseForward::issue_backward`].
    ///
    /// # Errors
    /// [`Error::Malformed`] for a pass that was made for the hidden states' gradient alone, and those of `stream`.
    pub unsafe fn issue_head_gradient<S: Stream>(
        &self,
        stream: &mut S,
        inputs: [DeviceMatrix; 2],
        bias: Option<DevicePtr>,
        upstream: &Upstream,
        gradients: [Option<DevicePtr>; 2],
    ) -> Result<(), S::Error> {
        let saved = self.saved.with_inputs(inputs, bias);
        // SAFETY: the caller's promise.
        unsafe {
            self.plan
                .issue_head_gradient(stream, &saved, upstream, gradients)
        }
    }
}
