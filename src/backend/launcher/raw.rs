//! Streams and memory of other libraries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUstream;

use super::{Launcher, driver_error};
use crate::backend::launch::{
    self, DevicePtr, Launch, Lifetime, addresses_of_parts, bytes_of_parts,
};
use crate::{Error, Result};

/// The alignment of the parts of an allocation, in bytes: that of CUDA's own allocations.
const ALIGNMENT: usize = 256;

impl Launcher {
    /// Makes a launcher on a stream of another library, in the primary context of the device with this number, which becomes that of
    /// the calling thread. The first call opens NVIDIA's driver.
    ///
    /// # Safety
    /// The handle must be of a stream of that context, or that of a default stream, and the stream must outlive the launcher.
    ///
    /// # Errors
    /// The driver's error, if there is no driver or no such device, or the kernels cannot be loaded on this device.
    pub unsafe fn on_stream(device: usize, handle: usize) -> Result<Self> {
        let context = primary_context(device)?;
        // Copies are issued to the context of the thread, which may have none yet.
        context.bind_to_thread().map_err(driver_error)?;
        // SAFETY: the caller's promise.
        Self::new(unsafe { context.wrap_borrowed_stream(handle as CUstream) })
    }
}

/// Returns the primary context of a device. It is kept for ever, as the kernels that are loaded in it are.
fn primary_context(device: usize) -> Result<Arc<CudaContext>> {
    static OPENED: Mutex<Option<HashMap<usize, Arc<CudaContext>>>> = Mutex::new(None);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let opened = opened.get_or_insert_default();
    if let Some(context) = opened.get(&device) {
        return Ok(context.clone());
    }
    // A driver that is linked has been found already. One that is opened at run time must be looked for, as cudarc panics without it.
    // SAFETY: opening NVIDIA's driver runs no code of others.
    #[cfg(not(feature = "cuda"))]
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        let message = "NVIDIA's driver was not found: CUDA needs its library (libcuda.so.1, or nvcuda.dll on Windows)";
        return Err(candle_core::Error::Cuda(message.into()).into());
    }
    let context = CudaContext::new(device).map_err(|error| {
        let message = format!("the CUDA device {device} cannot be used: {error}");
        Error::from(candle_core::Error::Cuda(message.into()))
    })?;
    opened.insert(device, context.clone());
    Ok(context)
}

/// A stream of another library, which allocates the memory of launches too. `allocate` takes a lifetime and a number of bytes,
/// and returns the address of memory that later work on the stream may use.
pub struct RawStream<'a, A> {
    launcher: &'a Launcher,
    allocate: A,
}

impl<'a, A> RawStream<'a, A> {
    /// Makes a stream of a launcher, and of the allocator of its memory.
    ///
    /// # Safety
    /// Memory of [`Lifetime::Scratch`] must stay until the launches are issued, and that of [`Lifetime::Kept`] as long as its
    /// addresses are used. It may be used again in the order of the stream only. Its address must be a multiple of 16.
    pub unsafe fn new(launcher: &'a Launcher, allocate: A) -> Self {
        Self { launcher, allocate }
    }

    /// Returns the address of so many bytes; `None` for none.
    fn allocate_bytes<E: From<Error>>(
        &mut self,
        lifetime: Lifetime,
        bytes: usize,
    ) -> Result<Option<DevicePtr>, E>
    where
        A: FnMut(Lifetime, usize) -> Result<Option<DevicePtr>, E>,
    {
        if bytes == 0 {
            return Ok(None);
        }
        let first = (self.allocate)(lifetime, bytes)?;
        let none = || Error::Malformed {
            what: "memory of a launch",
            detail: format!("the allocator returned no address for {bytes} bytes"),
        };
        Ok(Some(first.ok_or_else(none)?))
    }
}

impl<E: From<Error>, A: FnMut(Lifetime, usize) -> Result<Option<DevicePtr>, E>> launch::Stream
    for RawStream<'_, A>
{
    type Error = E;

    /// Allocates all parts as one buffer.
    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N], E> {
        let bytes = parts.map(|(_, bytes)| bytes);
        let first = self.allocate_bytes(lifetime, bytes_of_parts(&bytes, ALIGNMENT))?;
        Ok(addresses_of_parts(first, bytes, ALIGNMENT))
    }

    /// Uploads all tables in one copy, from page-locked memory.
    fn upload<const N: usize>(
        &mut self,
        tables: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N], E> {
        let tables = tables.map(|(_, table)| table);
        let bytes = tables.map(size_of_val);
        let first = self.allocate_bytes(Lifetime::Kept, bytes.iter().sum())?;
        if let Some(first) = first {
            // SAFETY: the buffer was allocated for these tables, in the order of the stream.
            unsafe { self.launcher.upload(&tables, first.address()) }?;
        }
        Ok(addresses_of_parts(first, bytes, size_of::<u32>()))
    }

    fn resident_blocks<P: Pod>(&self, launch: &Launch<P>) -> Result<Option<u32>, E> {
        Ok(self.launcher.resident_blocks(launch).map(Some)?)
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<(), E> {
        // SAFETY: the caller's promise.
        Ok(unsafe { self.launcher.launch(launch) }?)
    }
}
