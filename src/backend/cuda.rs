//! Runs launch plans on a CUDA device, through candle's stream.

pub(crate) mod decode;
pub(crate) mod dense;
mod kernels;
mod staging;
pub(crate) mod work;

use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use candle_core::CudaDevice;
use cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DriverError,
    LaunchConfig, PushKernelArg, SyncOnDrop,
};

use super::launch::{self, DeviceLimits, Launch};
use crate::{Error, Result};
use kernels::{Kernels, kernels_of, limits_of};
use staging::Staging;

/// Launches the crate's kernels on one device.
///
/// Work is issued on the device's own stream, which [`CudaDevice`] may tie to the calling thread of
/// the host: make and use an executor on the thread that issues candle's work.
#[derive(Clone)]
pub struct Executor {
    stream: Arc<CudaStream>,
    kernels: Kernels,
    staging: Arc<Mutex<Staging>>,
    limits: DeviceLimits,
}

/// Buffers that a launch reads and writes, as the addresses that its parameters carry.
///
/// cudarc orders the launch after the work of other streams on these buffers when they are added,
/// and the others' later work after the launch when the list is dropped: [`Executor::launch`] takes
/// it and drops it once the launch is issued.
#[derive(Default)]
pub struct Buffers<'a> {
    held: Vec<SyncOnDrop<'a>>,
}

impl<'a> Buffers<'a> {
    /// No buffer yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The address of a buffer that the launch reads.
    pub fn read<T>(
        &mut self,
        executor: &'a Executor,
        buffer: &'a impl DevicePtr<T>,
    ) -> Option<launch::DevicePtr> {
        self.hold(buffer.device_ptr(&executor.stream))
    }

    /// The address of a buffer that the launch writes.
    pub fn write<T>(
        &mut self,
        executor: &'a Executor,
        buffer: &'a mut impl DevicePtrMut<T>,
    ) -> Option<launch::DevicePtr> {
        self.hold(buffer.device_ptr_mut(&executor.stream))
    }

    fn hold(&mut self, (address, held): (u64, SyncOnDrop<'a>)) -> Option<launch::DevicePtr> {
        self.held.push(held);
        launch::DevicePtr::new(address)
    }
}

/// A parameter struct on its way to a kernel.
#[repr(transparent)]
struct ByValue<P>(P);

// SAFETY: any bytes of a Pod type may be copied into a kernel's parameter space.
unsafe impl<P: Pod> DeviceRepr for ByValue<P> {}

impl Executor {
    /// An executor on candle's device and stream. The first one of a context loads the kernels.
    ///
    /// # Errors
    /// What the driver says, when it cannot load code for this device.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let (kernels, staging) = kernels_of(context)?;
        Ok(Self {
            kernels,
            staging,
            limits: limits_of(context).map_err(driver_error)?,
            stream,
        })
    }

    /// What plans must know of the device.
    #[must_use]
    pub fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    /// Issues a launch.
    ///
    /// # Safety
    /// The parameters must be those of the kernel, and their addresses must be of device buffers in
    /// `buffers` that are as large as the kernel's source says.
    ///
    /// # Errors
    /// What the driver says, when it refuses the launch.
    pub unsafe fn launch<P: Pod>(&self, launch: &Launch<P>, buffers: Buffers<'_>) -> Result<()> {
        let function = self.kernel(launch.kernel)?;
        let shape = LaunchConfig {
            grid_dim: launch.grid.into(),
            block_dim: launch.block.into(),
            shared_mem_bytes: launch.shared_bytes,
        };
        let params = ByValue(launch.params);
        let mut issue = self.stream.launch_builder(function);
        issue.arg(&params);
        // SAFETY: the caller's promise about the parameters; the buffers are held until after this.
        let issued = unsafe {
            if launch.cooperative {
                issue.launch_cooperative(shape)
            } else {
                issue.launch(shape)
            }
        };
        drop(buffers);
        issued.map_err(driver_error)?;
        Ok(())
    }

    /// Issues one copy of these words, one part behind the other, to the beginning of `to`.
    pub(crate) fn upload(&self, parts: &[&[u32]], to: &mut CudaSlice<u32>) -> Result<()> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let issued = staging.upload(&self.stream, parts, to);
        issued.map_err(driver_error)
    }

    /// How many blocks of this shape are resident together, as the driver counts them: for a benchmark's own
    /// [`Queue`](crate::launch::Queue).
    ///
    /// # Errors
    /// What the driver says.
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

fn driver_error(error: DriverError) -> Error {
    candle_core::Error::Cuda(Box::new(error)).into()
}
