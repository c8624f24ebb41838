//! Runs launch plans on a CUDA device, through the crate cust.

pub(crate) mod memory;
pub(crate) mod stream;

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::ptr::null_mut;

use bytemuck::{Pod, Zeroable};
use cust::context::CurrentContext;
use cust::device::Device;
use cust::error::CudaError;
use cust::memory::DeviceCopy;
use cust::module::Module;
use cust::stream::Stream;
use cust::sys::{self, CUdevice_attribute as Attribute, CUfunction_attribute as FunctionAttribute};
use half::{bf16, f16};

use super::launch::{DeviceLimits, Element, Launch};
use super::modules::MODULES;
use crate::{Error, Result};

/// The crate's kernels in one CUDA context, and launches of them.
///
/// It belongs to the context that was current when it was made, which must outlive it and must be
/// current in the thread that launches or drops it.
pub struct Executor {
    kernels: HashMap<&'static str, sys::CUfunction>,
    limits: DeviceLimits,
    /// The modules that the kernels are parts of.
    _modules: Vec<Module>,
}

impl Executor {
    /// Loads the kernels into the current context (see [`cust::quick_init`] and
    /// [`cust::context::Context`]).
    ///
    /// # Errors
    /// The driver's error, if there is no current context or the kernels cannot be loaded on this device.
    pub fn new() -> Result<Self> {
        let device = CurrentContext::get_device().map_err(driver_error)?;
        let limits = limits_of(device)?;
        let mut kernels = HashMap::new();
        let mut modules = Vec::with_capacity(MODULES.len());
        for module in MODULES {
            let loaded = Module::from_fatbin(module.image, &[]).map_err(driver_error)?;
            for &name in module.kernels {
                kernels.insert(name, kernel(&loaded, name, limits.shared_bytes_per_block)?);
            }
            modules.push(loaded);
        }
        Ok(Self {
            kernels,
            limits,
            _modules: modules,
        })
    }

    /// Returns the limits of the device, which plans depend on.
    #[doc(hidden)]
    #[must_use]
    pub fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    /// Issues a launch on a stream.
    ///
    /// # Safety
    /// The parameters must be those of the kernel. Their addresses must be of device buffers that have the sizes that the
    /// kernel's source documents. Nothing else may read, write or free them until the launch is done.
    ///
    /// # Errors
    /// The driver's error, if it refuses the launch.
    #[doc(hidden)]
    pub unsafe fn launch<P: Pod>(&self, stream: &Stream, launch: &Launch<P>) -> Result<()> {
        let function = self.kernel(launch.kernel)?;
        let (grid, block) = (launch.grid, launch.block);
        let mut params = launch.params;
        let mut arguments = [(&raw mut params).cast::<c_void>()];
        let (stream, arguments) = (stream.as_inner(), arguments.as_mut_ptr());
        // SAFETY: the function is of a module that `self` holds. The driver knows the size of the kernel's one parameter and
        // copies it before it returns. The caller promises that it is this parameter, with the buffers that the kernel needs.
        succeeded(unsafe {
            if launch.cooperative {
                sys::cuLaunchCooperativeKernel(
                    function,
                    grid[0],
                    grid[1],
                    grid[2],
                    block[0],
                    block[1],
                    block[2],
                    launch.shared_bytes,
                    stream,
                    arguments,
                )
            } else {
                sys::cuLaunchKernel(
                    function,
                    grid[0],
                    grid[1],
                    grid[2],
                    block[0],
                    block[1],
                    block[2],
                    launch.shared_bytes,
                    stream,
                    arguments,
                    null_mut(),
                )
            }
        })
    }

    /// Returns how many blocks of a launch are resident at the same time, from the driver's occupancy calculation.
    pub(crate) fn resident_blocks<P>(&self, launch: &Launch<P>) -> Result<u32> {
        let function = self.kernel(launch.kernel)?;
        let mut each = 0;
        // SAFETY: the driver writes one int to `each`, and the function is of a loaded module.
        succeeded(unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &raw mut each,
                function,
                launch.block[0] as i32,
                launch.shared_bytes as usize,
            )
        })?;
        Ok(each.max(0) as u32 * self.limits.multiprocessors)
    }

    fn kernel(&self, name: &str) -> Result<sys::CUfunction> {
        self.kernels
            .get(name)
            .copied()
            .ok_or_else(|| Error::Malformed {
                what: "launch",
                detail: format!("there is no kernel '{name}'"),
            })
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Executor")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// An element type of logits, hidden states and heads: f32, [`F16`] or [`Bf16`]. The trait is sealed, because the sizes of
/// buffers depend on it.
pub trait Logit: DeviceCopy + Pod + sealed::Sealed {
    /// The element type that selects the kernel.
    #[doc(hidden)]
    const ELEMENT: Element;
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for f32 {}
    impl Sealed for super::F16 {}
    impl Sealed for super::Bf16 {}
}

impl Logit for f32 {
    const ELEMENT: Element = Element::F32;
}

/// [`half::f16`] in device memory; `bytemuck::cast_slice` turns slices of either into the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub struct F16(pub f16);

/// [`half::bf16`] in device memory; `bytemuck::cast_slice` turns slices of either into the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Bf16(pub bf16);

// SAFETY: two bytes of plain data, without references.
unsafe impl DeviceCopy for F16 {}
// SAFETY: as above.
unsafe impl DeviceCopy for Bf16 {}

impl Logit for F16 {
    const ELEMENT: Element = Element::F16;
}
impl Logit for Bf16 {
    const ELEMENT: Element = Element::Bf16;
}

/// Finds a kernel and raises its limit of dynamic shared memory above the default of 48 KiB.
fn kernel(module: &Module, name: &str, shared_bytes: u32) -> Result<sys::CUfunction> {
    let function = module.get_function(name).map_err(driver_error)?.to_raw();
    let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function is of a module that is loaded.
    succeeded(unsafe { sys::cuFuncSetAttribute(function, attribute, shared_bytes as i32) })?;
    Ok(function)
}

fn limits_of(device: Device) -> Result<DeviceLimits> {
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: the driver writes one int to `value`.
        succeeded(unsafe {
            sys::cuDeviceGetAttribute(&raw mut value, attribute, device.as_raw())
        })?;
        Ok::<_, Error>(value.max(0) as u32)
    };
    Ok(DeviceLimits {
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_per_block: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        shared_bytes_per_multiprocessor: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        )?,
    })
}

fn succeeded(status: sys::CUresult) -> Result<()> {
    match status {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        status => Err(cuda_error(format!("{status:?}"))),
    }
}

pub(crate) fn driver_error(error: CudaError) -> Error {
    // cust asks the driver for the text of an error, which fails without a driver.
    cuda_error(format!("CUDA error {} ({error:?})", error as u32))
}

fn cuda_error(message: String) -> Error {
    candle_core::Error::Cuda(message.into()).into()
}
