//! Runs launch plans on a CUDA device, through candle's stream.

pub(crate) mod sets;
pub(crate) mod stream;

use std::ops::Deref;

use candle_core::CudaDevice;
use cudarc::driver::DevicePtr;

use super::launch;
use super::launcher::Launcher;
use crate::Result;

/// Launches the crate's kernels on one device.
///
/// Work is issued to the device's own stream, which may be another in each thread of the host (the per-thread default stream).
/// So make and use an executor in the thread that issues candle's work.
#[derive(Clone)]
pub struct Executor {
    device: CudaDevice,
    launcher: Launcher,
}

impl Executor {
    /// Makes an executor on candle's device and stream. The first one of a context loads the kernels.
    ///
    /// # Errors
    /// The driver's error, if the kernels cannot be loaded on this device.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            launcher: Launcher::new(device.cuda_stream())?,
        })
    }

    /// Returns candle's device.
    pub(crate) fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// Returns the address of a buffer of this stream. It does not order the launches after the work of other streams.
    pub fn address<T>(&self, buffer: &impl DevicePtr<T>) -> Option<launch::DevicePtr> {
        launch::DevicePtr::new(buffer.device_ptr(&self.stream).0)
    }
}

impl Deref for Executor {
    type Target = Launcher;

    fn deref(&self) -> &Launcher {
        &self.launcher
    }
}
