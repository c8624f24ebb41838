//! What one pass issues.

use bytemuck::Pod;
use candle_core::CudaDevice;
use cudarc::driver::{CudaSlice, CudaView};

use super::dense::{DeviceSets, uninitialised};
use super::{Buffers, Executor};
use crate::backend::launch::{DevicePtr, Launch, Lifetime, Queue, bytes_of_parts, places_of_parts};
use crate::{Error, Result};

/// As strict as the device's own allocations.
const ALIGNMENT: usize = 256;

/// The stream of a device, buffers of candle's that what is issued there reads and writes, and the memory
/// that it alone needs: that is the stream's own, which frees it behind what was issued.
pub(crate) struct Work<'a> {
    executor: &'a Executor,
    /// The executor's.
    device: &'a CudaDevice,
    buffers: Buffers<'a>,
    scratch: Vec<CudaSlice<u32>>,
    kept: Vec<CudaSlice<u32>>,
}

impl<'a> Work<'a> {
    pub fn new(executor: &'a Executor, device: &'a CudaDevice) -> Self {
        Self {
            executor,
            device,
            buffers: Buffers::new(),
            scratch: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// The address of what is read.
    pub fn read<T>(&mut self, view: CudaView<'a, T>) -> Option<DevicePtr> {
        self.buffers.hold(view.view_ptr(&self.executor.stream))
    }

    /// The address of what is written.
    pub fn write<T>(&mut self, slice: &'a mut CudaSlice<T>) -> Option<DevicePtr> {
        self.buffers.write(self.executor, slice)
    }

    /// The address of the tokens of all sets.
    pub fn tokens(&mut self, sets: &'a DeviceSets) -> Option<DevicePtr> {
        sets.view(self.executor, &mut self.buffers).tokens
    }

    /// What is kept, for other streams as if the last that was issued had written all of it.
    pub fn into_kept(mut self) -> Vec<CudaSlice<u32>> {
        let mut written = Buffers::new();
        for memory in &mut self.kept {
            written.write(self.executor, memory);
        }
        drop(written);
        self.kept
    }

    fn hold<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        memory: CudaSlice<u32>,
        bytes: [usize; N],
        alignment: usize,
    ) -> [Option<DevicePtr>; N] {
        let first = Buffers::new().read(self.executor, &memory);
        match lifetime {
            Lifetime::Scratch => self.scratch.push(memory),
            Lifetime::Kept => self.kept.push(memory),
        }
        places_of_parts(first, bytes, alignment)
    }
}

impl Queue for Work<'_> {
    type Error = Error;

    /// In one piece.
    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        let bytes = parts.map(|(_, bytes)| bytes);
        let memory = uninitialised(
            self.device,
            bytes_of_parts(&bytes, ALIGNMENT) / size_of::<u32>(),
        )?;
        Ok(self.hold(lifetime, memory, bytes, ALIGNMENT))
    }

    /// In one copy, from page-locked memory.
    fn upload<const N: usize>(
        &mut self,
        parts: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        let words = parts.map(|(_, words)| words);
        let mut memory = uninitialised(self.device, words.iter().map(|words| words.len()).sum())?;
        self.executor.upload(&words, &mut memory)?;
        let bytes = words.map(size_of_val);
        Ok(self.hold(Lifetime::Kept, memory, bytes, size_of::<u32>()))
    }

    fn resident_blocks<P: Pod>(&self, launch: &Launch<P>) -> Result<Option<u32>> {
        self.executor.resident_blocks(launch).map(Some)
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<()> {
        // SAFETY: the caller's promise; the buffers are held here.
        unsafe { self.executor.launch(launch, Buffers::new()) }
    }
}
