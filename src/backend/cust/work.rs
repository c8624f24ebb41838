//! What one pass issues.

use bytemuck::Pod;
use cust::memory::DeviceBuffer;
use cust::stream::Stream;

use super::Executor;
use super::memory::{address, uninitialised, upload};
use crate::backend::launch::{DevicePtr, Launch, Lifetime, Queue, places_of_parts};
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

    fn hold(&mut self, name: Option<&'static str>, buffer: DeviceBuffer<u8>) -> Option<DevicePtr> {
        let address = address(&buffer);
        self.held.push((name, buffer));
        address
    }

    /// Scratch of the same name, which what was issued before has done with when this comes.
    fn again(&self, name: Option<&'static str>, bytes: usize) -> Option<DevicePtr> {
        let mut held = self
            .held
            .iter()
            .filter(|(held, _)| held.is_some() && *held == name);
        held.find(|(_, buffer)| buffer.len() >= bytes)
            .and_then(|(_, buffer)| address(buffer))
    }
}

impl Queue for Work<'_> {
    type Error = Error;

    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        let mut addresses = [None; N];
        for (place, (name, bytes)) in addresses.iter_mut().zip(parts) {
            let name = (lifetime == Lifetime::Scratch).then_some(name);
            if bytes > 0 {
                *place = match self.again(name, bytes) {
                    None => self.hold(name, uninitialised(bytes)?),
                    again => again,
                };
            }
        }
        Ok(addresses)
    }

    /// In one piece, as each copy waits.
    fn upload<const N: usize>(
        &mut self,
        parts: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        let words = parts.map(|(_, words)| words);
        let first = self.hold(None, upload(bytemuck::cast_slice(&words.concat()))?);
        Ok(places_of_parts(
            first,
            words.map(size_of_val),
            size_of::<u32>(),
        ))
    }

    fn resident_blocks<P: Pod>(&self, launch: &Launch<P>) -> Result<Option<u32>> {
        self.executor.resident_blocks(launch).map(Some)
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.executor.launch(self.stream, launch) }
    }
}
