//! cust's stream, as plans are issued to it.

use bytemuck::Pod;
use cust::memory::DeviceBuffer;

use super::Executor;
use super::memory::{address, uninitialised, upload};
use crate::backend::launch::{self, DevicePtr, Launch, Lifetime, places_of_parts};
use crate::{Error, Result};

/// A stream, and the memory that what is issued there alone needs.
pub(crate) struct CustStream<'a> {
    executor: &'a Executor,
    stream: &'a cust::stream::Stream,
    /// The memory, scratch under its name.
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

    /// Returns the memory, to be freed when what was issued is done.
    pub fn into_held(self) -> Vec<DeviceBuffer<u8>> {
        self.held.into_iter().map(|(_, buffer)| buffer).collect()
    }

    fn hold(&mut self, name: Option<&'static str>, buffer: DeviceBuffer<u8>) -> Option<DevicePtr> {
        let address = address(&buffer);
        self.held.push((name, buffer));
        address
    }

    /// Finds scratch of the same name, which what was issued before no longer needs when this comes.
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
        for (place, (name, bytes)) in addresses.iter_mut().zip(parts) {
            let name = (lifetime == Lifetime::Scratch).then_some(name);
            if bytes > 0 {
                *place = match self.reused(name, bytes) {
                    None => self.hold(name, uninitialised(bytes)?),
                    reused => reused,
                };
            }
        }
        Ok(addresses)
    }

    /// Uploads all tables in one piece, as each copy waits.
    fn upload<const N: usize>(
        &mut self,
        tables: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        let tables = tables.map(|(_, table)| table);
        let first = self.hold(None, upload(bytemuck::cast_slice(&tables.concat()))?);
        Ok(places_of_parts(
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
