//! What one pass issues.

use bytemuck::Pod;
use cust::memory::DeviceBuffer;
use cust::stream::Stream;

use super::Executor;
use super::memory::{address, uninitialised, upload};
use crate::backend::launch::{Launch, Product, Queue};
use crate::{Error, Result};

/// A stream, and the memory that what is issued there alone needs.
pub(super) struct Work<'a> {
    executor: &'a Executor,
    stream: &'a Stream,
    scratch: Vec<DeviceBuffer<u8>>,
}

impl<'a> Work<'a> {
    pub fn new(executor: &'a Executor, stream: &'a Stream) -> Self {
        Self {
            executor,
            stream,
            scratch: Vec::new(),
        }
    }

    /// To be freed when the work is done.
    pub fn into_scratch(self) -> Vec<DeviceBuffer<u8>> {
        self.scratch
    }

    fn hold(&mut self, buffer: DeviceBuffer<u8>) -> u64 {
        let address = address(&buffer);
        self.scratch.push(buffer);
        address
    }
}

impl Queue for Work<'_> {
    type Error = Error;

    fn allocate(&mut self, _name: &'static str, bytes: usize) -> Result<u64> {
        Ok(self.hold(uninitialised(bytes)?))
    }

    /// In one piece, as each copy waits.
    fn upload<const N: usize>(&mut self, parts: [(&'static str, &[u32]); N]) -> Result<[u64; N]> {
        let words = parts.map(|(_, words)| words).concat();
        let mut next = self.hold(upload(bytemuck::cast_slice(&words))?);
        Ok(parts.map(|(_, words)| {
            let address = next;
            next += size_of_val(words) as u64;
            address
        }))
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.executor.launch(self.stream, launch) }
    }

    unsafe fn multiply(&mut self, product: &Product) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.executor.multiply(self.stream, product) }
    }
}
