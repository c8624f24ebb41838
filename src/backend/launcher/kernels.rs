//! The compiled kernels, loaded once for each context, and the limits of its device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{
    CUdevice_attribute as Attribute, CUfunction_attribute as FunctionAttribute, cuDriverGetVersion,
};
use cudarc::driver::{CudaContext, CudaFunction, DriverError};
use cudarc::nvrtc::Ptx;

use super::staging::Staging;
use crate::backend::launch::DeviceLimits;
use crate::backend::modules::MODULES;
use crate::{Error, Result};

pub(super) type Kernels = Arc<HashMap<&'static str, CudaFunction>>;
type OfContext = (Kernels, Arc<Mutex<Staging>>);

/// Returns the kernels of a context, which are loaded once, and its page-locked memory. The map is keyed by the address of the
/// context. A loaded kernel keeps its context alive, so the address is never reused for another one.
pub(super) fn kernels_of(context: &Arc<CudaContext>) -> Result<OfContext> {
    static LOADED: OnceLock<Mutex<HashMap<usize, OfContext>>> = OnceLock::new();
    let mut loaded = LOADED
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let address = context.cu_ctx() as usize;
    if let Some(of_context) = loaded.get(&address) {
        return Ok(of_context.clone());
    }
    let kernels = Arc::new(load(context).map_err(|error| cannot_load(context, error))?);
    let of_context = (kernels, Arc::default());
    loaded.insert(address, of_context.clone());
    Ok(of_context)
}

/// Returns the error of a GPU or a driver that the kernels were not compiled for.
fn cannot_load(context: &CudaContext, error: DriverError) -> Error {
    let (major, minor) = context.compute_capability().unwrap_or_default();
    let mut version = 0;
    // SAFETY: the driver writes one int to `version`.
    unsafe { cuDriverGetVersion(&raw mut version) };
    let message = format!(
        "the kernels cannot be loaded: {error}. They were compiled for the architectures {}. This GPU has the compute capability \
         {major}.{minor}, and its driver is of CUDA {}.{}",
        option_env!("CANDLE_TRIE_COMPILED_FOR").unwrap_or("none"),
        version / 1000,
        version % 1000 / 10,
    );
    candle_core::Error::Cuda(message.into()).into()
}

fn load(context: &Arc<CudaContext>) -> Result<HashMap<&'static str, CudaFunction>, DriverError> {
    let shared_bytes =
        context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    let mut kernels = HashMap::new();
    for module in MODULES {
        let loaded = context.load_module(Ptx::from_binary(module.image.to_vec()))?;
        for &name in module.kernels {
            let function = loaded.load_function(name)?;
            // Raises the limit of dynamic shared memory above the default of 48 KiB.
            function.set_attribute(
                FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes,
            )?;
            kernels.insert(name, function);
        }
    }
    Ok(kernels)
}

pub(super) fn limits_of(context: &CudaContext) -> Result<DeviceLimits, DriverError> {
    let attribute = |attribute| {
        context
            .attribute(attribute)
            .map(|value| value.max(0) as u32)
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
