//! The temperature of a loss from one batch to the next. It is on the host or, after a step on a device, in the memory of that
//! device.

use std::sync::OnceLock;
use std::thread::ThreadId;

use candle_core::{Device, Tensor};

#[cfg(feature = "cuda")]
use crate::backend::cuda::sets::is_another;
use crate::{Result, Statistics, Temperature};

/// The source of the temperature of one pass.
#[derive(Debug, Clone)]
pub(super) enum TemperatureSource {
    /// The caller gives the temperature.
    Given(f64),
    /// The temperature takes a step with the statistics of the pass. The tensor holds τ before the step if it is on a device.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    Stepping(Temperature, Option<Tensor>),
}

impl TemperatureSource {
    /// Returns τ for a pass on the host with these statistics and, where it took a step, the new temperature.
    pub fn resolve(&self, statistics: &Statistics) -> Result<(f64, Option<Temperature>)> {
        match self {
            Self::Given(value) => Ok((*value, None)),
            Self::Stepping(temperature, _) => {
                let mut temperature = temperature.clone();
                let value = temperature.step(statistics, temperature.state().step)?;
                Ok((value, Some(temperature)))
            }
        }
    }
}

/// A temperature that took a step.
#[derive(Debug, Clone)]
pub(super) enum Stepped {
    OnHost(Temperature),
    /// A device holds the new τ, an f64 scalar.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    OnDevice(Tensor),
}

/// The current temperature. A step on a device leaves τ there. The host reads it, and waits for the device, only on demand.
#[derive(Debug, Clone)]
pub(super) struct CurrentTemperature {
    host: Temperature,
    pending: Option<PendingTemperature>,
}

/// A τ in device memory, which a kernel writes and the host may not have read yet.
///
/// Clones of a loss may move to other host threads. If candle's device was made by `Device::new_cuda`, these have other
/// streams, which are not ordered with the stream of the kernel. Kernels in the same stream read τ in device memory. In any
/// other stream, the host synchronises the context before it reads τ or drops its reference to the memory.
#[derive(Debug, Clone)]
struct PendingTemperature {
    value: Tensor,
    read: OnceLock<Temperature>,
    issued_by: ThreadId,
}

impl PendingTemperature {
    /// Returns whether the device's stream in this thread is the stream of the kernel.
    fn is_in_order(&self) -> bool {
        match self.value.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => !is_another(&device.cuda_stream(), self.issued_by),
            _ => std::thread::current().id() == self.issued_by,
        }
    }

    /// Waits for all streams if the kernel is in another stream than that of this thread.
    fn wait_for_others(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let (Device::Cuda(device), false) = (self.value.device(), self.is_in_order()) {
            use candle_core::cuda_backend::WrapErr;
            device.cuda_stream().context().synchronize().w()?;
        }
        Ok(())
    }
}

impl Drop for PendingTemperature {
    fn drop(&mut self) {
        // An error means that the context has failed, and then there is nothing to wait for.
        let _ = self.wait_for_others();
    }
}

impl From<Temperature> for CurrentTemperature {
    fn from(temperature: Temperature) -> Self {
        Self {
            host: temperature,
            pending: None,
        }
    }
}

impl CurrentTemperature {
    /// Returns the current temperature. The first call after a step on a device waits for the device.
    ///
    /// # Errors
    /// candle's errors of the transfer. The temperature stays on the device, and can be read again.
    pub fn get(&self) -> Result<&Temperature> {
        let Some(pending) = &self.pending else {
            return Ok(&self.host);
        };
        if let Some(read) = pending.read.get() {
            return Ok(read);
        }
        pending.wait_for_others()?;
        let value = pending.value.to_scalar()?;
        Ok(pending.read.get_or_init(|| self.host.at(value)))
    }

    /// Returns the current temperature for changes.
    ///
    /// # Errors
    /// Those of [`get`](Self::get).
    pub fn get_mut(&mut self) -> Result<&mut Temperature> {
        if self.pending.is_some() {
            self.host = self.get()?.clone();
            self.pending = None;
        }
        Ok(&mut self.host)
    }

    /// Returns the temperature as the host knows it. Its strategy and step number are always current, but τ may be pending.
    pub fn known(&self) -> &Temperature {
        &self.host
    }

    /// Returns the source of the temperature for a pass on this device that takes a step.
    pub fn stepping(&self, device: &Device) -> Result<TemperatureSource> {
        match (&self.pending, device) {
            (Some(pending), Device::Cuda(_)) if pending.is_in_order() => {
                let value = pending.value.to_device(device)?;
                Ok(TemperatureSource::Stepping(self.host.clone(), Some(value)))
            }
            _ => Ok(TemperatureSource::Stepping(self.get()?.clone(), None)),
        }
    }

    pub fn take(&mut self, stepped: Stepped) {
        match stepped {
            Stepped::OnHost(temperature) => *self = temperature.into(),
            Stepped::OnDevice(value) => {
                self.host.count_step();
                self.pending = Some(PendingTemperature {
                    value,
                    read: OnceLock::new(),
                    issued_by: std::thread::current().id(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdaptiveStrategy, Error};

    /// Returns a temperature that is pending on a device with this tensor as τ.
    fn pending(value: Tensor) -> CurrentTemperature {
        let mut temperature =
            CurrentTemperature::from(Temperature::from(AdaptiveStrategy::default()));
        temperature.take(Stepped::OnDevice(value));
        temperature
    }

    #[test]
    fn a_temperature_that_cannot_be_read_from_its_device_is_an_error() {
        // candle's error for a tensor that is not a scalar stands for that of a failed device.
        let mut unreadable = pending(Tensor::new(&[2.0, 3.0], &Device::Cpu).unwrap());
        for _ in 0..2 {
            assert!(matches!(unreadable.get(), Err(Error::Candle(_))));
            assert!(matches!(unreadable.get_mut(), Err(Error::Candle(_))));
            let next = unreadable.stepping(&Device::Cpu);
            assert!(matches!(next, Err(Error::Candle(_))));
        }
    }

    #[test]
    fn a_temperature_is_read_from_its_device_when_it_is_asked_for() {
        let mut readable = pending(Tensor::new(2.5, &Device::Cpu).unwrap());
        assert_eq!(readable.known().value(), 1.5);
        assert_eq!(readable.get().unwrap().value(), 2.5);
        assert_eq!(readable.get_mut().unwrap().state().step, 1);
        assert_eq!(readable.known().value(), 2.5);
    }
}
