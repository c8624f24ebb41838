//! candle's stream, as plans are issued to it.

use bytemuck::Pod;
use candle_core::CudaDevice;
use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr as _, DevicePtrMut as _, DeviceRepr, SyncOnDrop,
};

use super::Executor;
use crate::backend::launch::{self, DevicePtr, Launch, Lifetime, bytes_of_parts, places_of_parts};
use crate::{Error, Result};

/// The alignment of the device's own allocations, in bytes.
const ALIGNMENT: usize = 256;

/// The stream of an executor, with the buffers of candle's that what is issued there reads and writes, and the memory that
/// it alone needs: the stream frees that memory behind what was issued.
///
/// cudarc orders launches after the work of other streams on a buffer when the buffer is added, and the later work of other
/// streams after the launches when this is dropped.
pub(crate) struct CandleStream<'a> {
    executor: &'a Executor,
    buffers: Vec<SyncOnDrop<'a>>,
    scratch: Vec<CudaSlice<u32>>,
    kept: Vec<CudaSlice<u32>>,
}

impl<'a> CandleStream<'a> {
    pub fn new(executor: &'a Executor) -> Self {
        Self {
            executor,
            buffers: Vec::new(),
            scratch: Vec::new(),
            kept: Vec::new(),
        }
    }

    pub fn executor(&self) -> &'a Executor {
        self.executor
    }

    pub(super) fn cuda_stream(&self) -> &'a CudaStream {
        &self.executor.stream
    }

    /// Adds a buffer that launches read, and returns its address.
    pub fn read<T>(&mut self, slice: &'a CudaSlice<T>) -> Option<DevicePtr> {
        self.hold(slice.device_ptr(&self.executor.stream))
    }

    /// Adds a buffer that launches write, and returns its address.
    pub fn write<T>(&mut self, slice: &'a mut CudaSlice<T>) -> Option<DevicePtr> {
        self.hold(slice.device_ptr_mut(&self.executor.stream))
    }

    fn hold(&mut self, (address, guard): (u64, SyncOnDrop<'a>)) -> Option<DevicePtr> {
        self.buffers.push(guard);
        DevicePtr::new(address)
    }

    /// Returns the kept memory, for other streams as if the last launch had written all of it.
    pub fn into_kept(mut self) -> Vec<CudaSlice<u32>> {
        for memory in &mut self.kept {
            drop(memory.device_ptr_mut(&self.executor.stream));
        }
        self.kept
    }

    fn keep<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        memory: CudaSlice<u32>,
        bytes: [usize; N],
        alignment: usize,
    ) -> [Option<DevicePtr>; N] {
        let first = self.executor.address(&memory);
        match lifetime {
            Lifetime::Scratch => self.scratch.push(memory),
            Lifetime::Kept => self.kept.push(memory),
        }
        places_of_parts(first, bytes, alignment)
    }
}

impl launch::Stream for CandleStream<'_> {
    type Error = Error;

    /// Allocates all parts in one piece.
    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        let bytes = parts.map(|(_, bytes)| bytes);
        let words = bytes_of_parts(&bytes, ALIGNMENT) / size_of::<u32>();
        let memory = uninitialised(self.executor.device(), words)?;
        Ok(self.keep(lifetime, memory, bytes, ALIGNMENT))
    }

    /// Uploads all tables in one copy, from page-locked memory.
    fn upload<const N: usize>(
        &mut self,
        tables: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        let tables = tables.map(|(_, table)| table);
        let words = tables.iter().map(|table| table.len()).sum();
        let mut memory = uninitialised(self.executor.device(), words)?;
        self.executor.upload(&tables, &mut memory)?;
        Ok(self.keep(
            Lifetime::Kept,
            memory,
            tables.map(size_of_val),
            size_of::<u32>(),
        ))
    }

    fn resident_blocks<P: Pod>(&self, launch: &Launch<P>) -> Result<Option<u32>> {
        self.executor.resident_blocks(launch).map(Some)
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<()> {
        // SAFETY: the caller's promise; the buffers are held here.
        unsafe { self.executor.launch(launch) }
    }
}

/// Allocates memory for `length` elements, for a kernel to write all of.
pub(crate) fn uninitialised<T: DeviceRepr>(
    device: &CudaDevice,
    length: usize,
) -> Result<CudaSlice<T>> {
    // SAFETY: whoever asks for the memory writes it before anyone reads it. A device has no buffer
    // without elements.
    Ok(unsafe { device.alloc::<T>(length.max(1)) }?)
}
