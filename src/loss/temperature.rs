//! The temperature of a loss from one batch to the next: on the host, or a step ahead of it on a
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
    /// The temperature takes a step with the statistics of the pass. It is on the host, or else on a device.
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

/// The temperature as it stands. A step on a device leaves its τ there, and the host reads it, and waits
/// for the device, only when it is asked for.
#[derive(Debug, Clone)]
pub(super) struct CurrentTemperature {
    host: Temperature,
    ahead: Option<Ahead>,
}

/// A τ that a kernel writes.
///
/// Clones of a loss may go to other host threads, whose streams are others where candle's device was made
/// by `Device::new_cuda`, and not ordered with the one that the kernel is in. Kernels of that stream read
/// the τ where it is. In any other the host waits for the whole context before it reads the τ, or gives up its
/// share of the memory.
#[derive(Debug, Clone)]
struct Ahead {
    value: Tensor,
    read: OnceLock<Temperature>,
    issued_by: ThreadId,
}

impl Ahead {
    /// Returns whether the device's stream, as this thread sees it, is the one that the kernel is in.
    fn is_in_order(&self) -> bool {
        match self.value.device() {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => !is_another(&device.cuda_stream(), self.issued_by),
            _ => std::thread::current().id() == self.issued_by,
        }
    }

    /// Waits for all streams, if the kernel is in another than this thread's.
    fn wait_for_others(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let (Device::Cuda(device), false) = (self.value.device(), self.is_in_order()) {
            use candle_core::cuda_backend::WrapErr;
            device.cuda_stream().context().synchronize().w()?;
        }
        Ok(())
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // Where the context has failed there is nothing to wait for.
        let _ = self.wait_for_others();
    }
}

impl From<Temperature> for CurrentTemperature {
    fn from(temperature: Temperature) -> Self {
        Self {
            host: temperature,
            ahead: None,
        }
    }
}

impl CurrentTemperature {
    /// Returns the temperature as it stands. The first call after a step on a device waits for the device.
    ///
    /// # Errors
    /// Those that candle reports of the transfer. The temperature stays where it is, to be read again.
    pub fn get(&self) -> Result<&Temperature> {
        let Some(ahead) = &self.ahead else {
            return Ok(&self.host);
        };
        if let Some(read) = ahead.read.get() {
            return Ok(read);
        }
        ahead.wait_for_others()?;
        let value = ahead.value.to_scalar()?;
        Ok(ahead.read.get_or_init(|| self.host.at(value)))
    }

    /// Returns the temperature as it stands, to be changed.
    ///
    /// # Errors
    /// Those of [`get`](Self::get).
    pub fn get_mut(&mut self) -> Result<&mut Temperature> {
        if self.ahead.is_some() {
            self.host = self.get()?.clone();
            self.ahead = None;
        }
        Ok(&mut self.host)
    }

    /// Returns the strategy and the number of the step, which the host always knows.
    pub fn known(&self) -> &Temperature {
        &self.host
    }

    /// Returns the source of the temperature for a pass on this device that takes a step.
    pub fn stepping(&self, device: &Device) -> Result<TemperatureSource> {
        match (&self.ahead, device) {
            (Some(ahead), Device::Cuda(_)) if ahead.is_in_order() => {
                let value = ahead.value.to_device(device)?;
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
                self.ahead = Some(Ahead {
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

    /// Ahead on a device that gives this tensor for τ.
    fn ahead(value: Tensor) -> CurrentTemperature {
        let mut temperature =
            CurrentTemperature::from(Temperature::from(AdaptiveStrategy::default()));
        temperature.take(Stepped::OnDevice(value));
        temperature
    }

    #[test]
    fn a_temperature_that_cannot_be_read_from_its_device_is_an_error() {
        // candle's error for what is no scalar of f64 stands for a device that has failed.
        let mut unreadable = ahead(Tensor::new(&[2.0, 3.0], &Device::Cpu).unwrap());
        for _ in 0..2 {
            assert!(matches!(unreadable.get(), Err(Error::Candle(_))));
            assert!(matches!(unreadable.get_mut(), Err(Error::Candle(_))));
            let next = unreadable.stepping(&Device::Cpu);
            assert!(matches!(next, Err(Error::Candle(_))));
        }
    }

    #[test]
    fn a_temperature_is_read_from_its_device_when_it_is_asked_for() {
        let mut readable = ahead(Tensor::new(2.5, &Device::Cpu).unwrap());
        assert_eq!(readable.known().value(), 1.5);
        assert_eq!(readable.get().unwrap().value(), 2.5);
        assert_eq!(readable.get_mut().unwrap().state().step, 1);
        assert_eq!(readable.known().value(), 2.5);
    }
}
