//! What one pass issues.

use bytemuck::Pod;
use cust::memory::DeviceBuffer;
use cust::stream::Stream;

use super::Executor;
use super::memory::{address, uninitialised, upload};
use crate::backend::launch::{Launch, Lifetime, Product, Queue, behind_one_another};
use crate::{Error, Result};

/// A stream, and the memory that what is issued there alone needs.
pub(super) struct Work<'a> {
    executor: &'a Executor,
    stream: &'a Stream,
    /// Scratch under its name.
    held: Vec<(Option<&'static str>, DeviceBuffer<u8>)>,
}

impl<'a> Work<'a> {
    pub fn new(executor: &'a Executor, stream: &'a Stream) -> Self {
        Self {
            executor,
            stream,
            held: Vec::new(),
        }
    }

    /// To be freed when the work is done.
    pub fn into_held(self) -> Vec<DeviceBuffer<u8>> {
        self.held.into_iter().map(|(_, buffer)| buffer).collect()
    }

    fn hold(&mut self, name: Option<&'static str>, buffer: DeviceBuffer<u8>) -> u64 {
        let address = address(&buffer);
        self.held.push((name, buffer));
        address
    }
}

impl Queue for Work<'_> {
    type Error = Error;

    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[u64; N]> {
        let mut addresses = [0; N];
        for (place, (name, bytes)) in addresses.iter_mut().zip(parts) {
            let name = (lifetime == Lifetime::Scratch).then_some(name);
            let mut same = self
                .held
                .iter()
                .filter(|(held, _)| held.is_some() && *held == name);
            *place = match same.find(|(_, buffer)| buffer.len() >= bytes) {
                Some((_, buffer)) => address(buffer),
                None => self.hold(name, uninitialised(bytes)?),
            };
        }
        Ok(addresses)
    }

    /// In one piece, as each copy waits.
    fn upload<const N: usize>(&mut self, parts: [(&'static str, &[u32]); N]) -> Result<[u64; N]> {
        let words = parts.map(|(_, words)| words);
        let (begins, _) = behind_one_another(words.map(size_of_val), size_of::<u32>());
        let first = self.hold(None, upload(bytemuck::cast_slice(&words.concat()))?);
        Ok(begins.map(|begin| first + begin))
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
