//! The state that losses over logits and over hidden states have in common.

use std::fmt;
use std::rc::Rc;

use ::cust::memory::DeviceBuffer;

use super::output::{LossOutput, read};
use crate::backend::cust::Executor;
use crate::backend::cust::memory::{DeviceSets, address};
use crate::backend::launch::{BatchTotals, DevicePtr, TemperaturePlan};
use crate::loss::MaskedSoftmaxLoss;
use crate::loss::temperature::Stepped;
use crate::temperature::check_temperature;
use crate::{Error, Result, Temperature};

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

    /// Returns the temperature of a pass that takes a step with the statistics of this batch.
    pub fn next(&self, totals: &BatchTotals) -> Result<PassTemperature<'_>> {
        Ok(PassTemperature {
            plan: totals.next(self.loss.temperature.known())?,
            previous: self.stepped.as_deref(),
        })
    }

    /// Records that a pass that takes a step was issued.
    pub fn take_step(&mut self, output: &LossOutput) {
        let mut known = self.loss.temperature.known().clone();
        if let Temperature::Adaptive(_) = known {
            known.count_step();
            self.loss.temperature.take(Stepped::OnHost(known));
            self.stepped = Some(output.temperature.clone());
        }
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

/// The temperature of a pass, and the buffer of the temperature before it, if that is on the device.
pub(super) struct PassTemperature<'a> {
    pub plan: TemperaturePlan,
    previous: Option<&'a DeviceBuffer<f64>>,
}

impl PassTemperature<'_> {
    pub fn previous_address(&self) -> Option<DevicePtr> {
        self.previous.and_then(|previous| address(previous))
    }
}

/// Returns the temperature of a pass that takes no step.
pub(super) fn given(temperature: f64) -> Result<PassTemperature<'static>> {
    check_temperature("temperature", temperature)?;
    Ok(PassTemperature {
        plan: TemperaturePlan::at(temperature),
        previous: None,
    })
}
