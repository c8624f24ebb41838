//! The stream that launch plans are issued to, over candle's stream.

use bytemuck::Pod;
use candle_core::CudaDevice;
use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr as _, DevicePtrMut as _, DeviceRepr, SyncOnDrop,
};

use super::Executor;
use crate::backend::launch::{
    self, DevicePtr, Launch, Lifetime, addresses_of_parts, bytes_of_parts,
};
use crate::{Error, Result};

/// The alignment of the device's own allocations, in bytes.
const ALIGNMENT: usize = 256;

/// The stream of an executor, the buffers of candle that its launches read and write, and the memory that only the launches
/// need. That memory is freed in the order of the stream.
///
/// cudarc orders launches after the work of other streams on a buffer when the buffer is added here, and the later work of
/// other streams after the launches when this is dropped.
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

    /// Returns the kept memory. Other streams are ordered after the launches, as if the last one had written all of it.
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
        addresses_of_parts(first, bytes, alignment)
    }
}

impl launch::Stream for CandleStream<'_> {
    type Error = Error;

    /// Allocates all parts as one buffer.
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
        let (address, written) = memory.device_ptr_mut(&self.executor.stream);
        // SAFETY: the memory was allocated for these tables.
        unsafe { self.executor.upload(&tables, address) }?;
        drop(written);
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

/// Allocates uninitialised memory for `length` elements.
pub(crate) fn uninitialised<T: DeviceRepr>(
    device: &CudaDevice,
    length: usize,
) -> Result<CudaSlice<T>> {
    // SAFETY: the elements have no invalid bits, and the kernels write them before they are read. The driver does not allocate
    // buffers of 0 bytes.
    Ok(unsafe { device.alloc::<T>(length.max(1)) }?)
}
