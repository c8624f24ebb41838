//! Runs launch plans on a stream of CUDA's driver, through cudarc. candle's executor and the streams of other libraries are made
//! of it.

mod kernels;
#[cfg(feature = "raw-cuda")]
pub(crate) mod raw;
mod staging;

use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use cudarc::driver::{
    CudaFunction, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
};

use super::launch::{DeviceLimits, Launch};
use crate::{Error, Result};
use kernels::{Kernels, kernels_of, limits_of};
use staging::Staging;

/// A stream, and the crate's kernels in its context.
#[derive(Clone)]
pub struct Launcher {
    pub(super) stream: Arc<CudaStream>,
    kernels: Kernels,
    staging: Arc<Mutex<Staging>>,
    limits: DeviceLimits,
}

/// A parameter struct that is passed to a kernel by value.
#[repr(transparent)]
struct ByValue<P>(P);

// SAFETY: any bytes of a Pod type may be copied into a kernel's parameter space.
unsafe impl<P: Pod> DeviceRepr for ByValue<P> {}

impl Launcher {
    /// Makes a launcher on a stream. The first one of a context loads the kernels.
    pub(super) fn new(stream: Arc<CudaStream>) -> Result<Self> {
        let context = stream.context();
        let (kernels, staging) = kernels_of(context)?;
        Ok(Self {
            kernels,
            staging,
            limits: limits_of(context).map_err(driver_error)?,
            stream,
        })
    }

    /// Returns the limits of the device, which plans depend on.
    #[must_use]
    pub fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    /// Issues a launch.
    ///
    /// # Safety
    /// The parameters must be those of the kernel. Their addresses must be of device buffers that have the sizes that the
    /// kernel's source documents, and that nothing else reads or writes until the launch is done.
    ///
    /// # Errors
    /// The driver's error, if it refuses the launch.
    pub unsafe fn launch<P: Pod>(&self, launch: &Launch<P>) -> Result<()> {
        let shape = LaunchConfig {
            grid_dim: launch.grid.into(),
            block_dim: launch.block.into(),
            shared_mem_bytes: launch.shared_bytes,
        };
        let params = ByValue(launch.params);
        let mut issue = self.stream.launch_builder(self.kernel(launch.kernel)?);
        issue.arg(&params);
        // SAFETY: the caller's promise about the parameters and their buffers.
        let issued = unsafe {
            if launch.cooperative {
                issue.launch_cooperative(shape)
            } else {
                issue.launch(shape)
            }
        };
        issued.map(drop).map_err(driver_error)
    }

    /// Issues one copy of the concatenated tables to an address, from page-locked memory.
    ///
    /// # Safety
    /// The address must be of a device buffer that has room for the tables, and that nothing else reads or writes until the copy
    /// is done.
    pub(super) unsafe fn upload(&self, tables: &[&[u32]], to: u64) -> Result<()> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's promise.
        let issued = unsafe { staging.upload(&self.stream, tables, to) };
        issued.map_err(driver_error)
    }

    /// Returns how many blocks of a launch are resident at the same time, from the driver's occupancy calculation.
    ///
    /// # Errors
    /// The driver's error.
    #[doc(hidden)]
    pub fn resident_blocks<P>(&self, launch: &Launch<P>) -> Result<u32> {
        let each = self
            .kernel(launch.kernel)?
            .occupancy_max_active_blocks_per_multiprocessor(
                launch.block[0],
                launch.shared_bytes as usize,
                None,
            );
        Ok(each.map_err(driver_error)? * self.limits.multiprocessors)
    }

    fn kernel(&self, name: &str) -> Result<&CudaFunction> {
        self.kernels.get(name).ok_or_else(|| Error::Malformed {
            what: "launch",
            detail: format!("there is no kernel '{name}'"),
        })
    }
}

pub(super) fn driver_error(error: DriverError) -> Error {
    candle_core::Error::Cuda(Box::new(error)).into()
}
