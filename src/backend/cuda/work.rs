//! What one pass issues.

use bytemuck::Pod;
use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};

use super::dense::{DeviceSets, uninitialised, upload};
use super::{Buffers, Executor};
use crate::backend::launch::{Launch, Lifetime, Product, Queue, TokenSetsView, behind_one_another};
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
    pub fn read<T>(&mut self, view: CudaView<'a, T>) -> u64 {
        let (address, held) = view.view_ptr(&self.executor.stream);
        self.buffers.held.push(held);
        address
    }

    /// The address of what is written.
    pub fn write<T>(&mut self, slice: &'a mut CudaSlice<T>) -> u64 {
        self.buffers.write(self.executor, slice)
    }

    pub fn sets(&mut self, sets: &'a DeviceSets) -> TokenSetsView {
        sets.view(self.executor, &mut self.buffers)
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
        begins: [u64; N],
    ) -> [u64; N] {
        let first = Buffers::new().read(self.executor, &memory);
        match lifetime {
            Lifetime::Scratch => self.scratch.push(memory),
            Lifetime::Kept => self.kept.push(memory),
        }
        begins.map(|begin| first + begin)
    }
}

impl Queue for Work<'_> {
    type Error = Error;

    /// In one piece.
    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[u64; N]> {
        let (begins, bytes) = behind_one_another(parts.map(|(_, bytes)| bytes), ALIGNMENT);
        let memory = uninitialised(self.device, bytes / size_of::<u32>())?;
        Ok(self.hold(lifetime, memory, begins))
    }

    /// In one copy.
    fn upload<const N: usize>(&mut self, parts: [(&'static str, &[u32]); N]) -> Result<[u64; N]> {
        let words = parts.map(|(_, words)| words);
        let (begins, _) = behind_one_another(words.map(size_of_val), size_of::<u32>());
        let memory = upload(self.device, &words.concat())?;
        Ok(self.hold(Lifetime::Kept, memory, begins))
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<()> {
        // SAFETY: the caller's promise; the buffers are held here.
        unsafe { self.executor.launch(launch, Buffers::new()) }
    }

    unsafe fn multiply(&mut self, product: &Product) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.executor.multiply(product) }
    }
}
