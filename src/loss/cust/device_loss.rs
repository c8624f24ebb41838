//! The state that losses over logits and over hidden states have in common.

use std::fmt;
use std::rc::Rc;

use ::cust::memory::DeviceBuffer;

use super::output::{LossOutput, read};
use crate::backend::cust::memory::{DeviceSets, address};
use crate::backend::cust::{Executor, Logit};
use crate::backend::launch::{DevicePtr, ForwardResults};
use crate::loss::MaskedSoftmaxLoss;
use crate::loss::raw::{Pass, check_loss, count_step};
use crate::{Result, Rows, Temperature};

/// A loss with its token sets, and its temperature after the last step, in device memory.
pub(super) struct DeviceLoss<'e> {
    pub executor: &'e Executor,
    pub loss: MaskedSoftmaxLoss,
    pub sets: DeviceSets,
    /// V, the number of tokens in the vocabulary.
    pub vocabulary: usize,
    /// τ after the last step, one f64; `None` before the first step.
    stepped: Option<Rc<DeviceBuffer<f64>>>,
}

impl<'e> DeviceLoss<'e> {
    pub fn new(
        executor: &'e Executor,
        mut loss: MaskedSoftmaxLoss,
        vocabulary: usize,
    ) -> Result<Self> {
        check_loss(&loss, vocabulary)?;
        // From here on the temperature is on the host or in `stepped`, and not on a device of candle.
        loss.temperature_mut()?;
        Ok(Self {
            sets: DeviceSets::new(&loss.sets)?,
            executor,
            loss,
            vocabulary,
            stepped: None,
        })
    }

    /// Returns the pass over tensors of this type.
    pub fn pass<'a, T: Logit>(
        &'a self,
        rows: &'a Rows,
        temperature: Option<f64>,
        results: ForwardResults,
    ) -> Pass<'a> {
        Pass {
            loss: &self.loss,
            rows,
            temperature,
            limits: self.executor.limits(),
            element: T::ELEMENT,
            results,
        }
    }

    /// Returns the address of the temperature before the next step, if that is on the device.
    pub fn previous(&self) -> Option<DevicePtr> {
        self.stepped.as_deref().and_then(|stepped| address(stepped))
    }

    /// Records that a pass that takes a step was issued.
    pub fn take_step(&mut self, output: &LossOutput) -> Result<()> {
        if count_step(&mut self.loss)? {
            self.stepped = Some(output.temperature.clone());
        }
        Ok(())
    }

    /// Returns the current temperature.
    pub fn temperature(&self) -> Result<Temperature> {
        let known = self.loss.temperature.known();
        match &self.stepped {
            Some(stepped) => Ok(known.at(read(stepped)?[0])),
            None => Ok(known.clone()),
        }
    }
}

impl fmt::Debug for DeviceLoss<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DeviceLoss")
            .field("loss", &self.loss)
            .field("vocabulary", &self.vocabulary)
            .finish_non_exhaustive()
    }
}
