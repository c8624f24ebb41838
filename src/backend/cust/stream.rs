//! The stream that launch plans are issued to, over a stream of cust.

use bytemuck::Pod;
use cust::memory::DeviceBuffer;

use super::Executor;
use super::memory::{address, uninitialised, upload};
use crate::backend::launch::{self, DevicePtr, Launch, Lifetime, addresses_of_parts};
use crate::{Error, Result};

/// A stream of cust, and the memory that the launches issued to it need.
pub(crate) struct CustStream<'a> {
    executor: &'a Executor,
    stream: &'a cust::stream::Stream,
    /// The memory. Scratch has a name, under which it can be reused.
    held: Vec<(Option<&'static str>, DeviceBuffer<u8>)>,
}

impl<'a> CustStream<'a> {
    pub fn new(executor: &'a Executor, stream: &'a cust::stream::Stream) -> Self {
        Self {
            executor,
            stream,
            held: Vec::new(),
        }
    }

    pub fn cust_stream(&self) -> &'a cust::stream::Stream {
        self.stream
    }

    /// Returns the memory, which must be freed only after the launches are done.
    pub fn into_held(self) -> Vec<DeviceBuffer<u8>> {
        self.held.into_iter().map(|(_, buffer)| buffer).collect()
    }

    fn hold(&mut self, name: Option<&'static str>, buffer: DeviceBuffer<u8>) -> Option<DevicePtr> {
        let address = address(&buffer);
        self.held.push((name, buffer));
        address
    }

    /// Returns scratch of the same name that is large enough. Earlier launches are done with it when later ones run.
    fn reused(&self, name: Option<&'static str>, bytes: usize) -> Option<DevicePtr> {
        let mut held = (self.held.iter()).filter(|(held, _)| held.is_some() && *held == name);
        let (_, buffer) = held.find(|(_, buffer)| buffer.len() >= bytes)?;
        address(buffer)
    }
}

impl launch::Stream for CustStream<'_> {
    type Error = Error;

    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        let mut addresses = [None; N];
        for (address, (name, bytes)) in addresses.iter_mut().zip(parts) {
            let name = (lifetime == Lifetime::Scratch).then_some(name);
            if bytes > 0 {
                *address = match self.reused(name, bytes) {
                    None => self.hold(name, uninitialised(bytes)?),
                    reused => reused,
                };
            }
        }
        Ok(addresses)
    }

    /// Uploads all tables in one copy, because each copy blocks the host.
    fn upload<const N: usize>(
        &mut self,
        tables: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        let tables = tables.map(|(_, table)| table);
        let first = self.hold(None, upload(bytemuck::cast_slice(&tables.concat()))?);
        Ok(addresses_of_parts(
            first,
            tables.map(size_of_val),
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
