//! The emulator as a stream.

use bytemuck::Pod;
use candle_trie::Error;
use candle_trie::launch::{DeviceLimits, DevicePtr, Launch, Lifetime, Stream};
use candle_trie_emulator::{Emulator, Fault, Limits, Memory, Report, launch_bounds};

use super::{Issued, Table};

/// A stream whose launches the emulator runs, on a device with these limits.
pub struct EmulatedStream<'a> {
    pub memory: Memory,
    emulator: &'a Emulator,
    device: DeviceLimits,
    /// The most blocks of a cooperative grid that are said to be resident.
    most_blocks: u32,
    reports: Vec<(&'static str, Report)>,
    /// The tables of the last upload.
    pub tables: Vec<Table>,
    pub launches: Vec<Issued>,
    /// Where block counters are, and how many.
    counters: Option<(DevicePtr, usize)>,
    scratch: Vec<(&'static str, u64)>,
}

/// A fault of a kernel. A plan that refuses is a fault of the test.
pub struct Failure(pub Fault);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        panic!("{error}")
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl<'a> EmulatedStream<'a> {
    pub fn new(
        emulator: &'a Emulator,
        memory: Memory,
        device: DeviceLimits,
        most_blocks: u32,
    ) -> Self {
        Self {
            memory,
            emulator,
            device,
            most_blocks,
            reports: Vec::new(),
            tables: Vec::new(),
            launches: Vec::new(),
            counters: None,
            scratch: Vec::new(),
        }
    }

    /// Frees scratch, as if this stream were dropped and another went on with what it keeps.
    pub fn free_scratch(&mut self) {
        for (_, address) in self.scratch.drain(..) {
            self.memory.free(address);
        }
    }

    /// Takes the report of the last launch of a kernel whose name begins so; an empty one where there was none.
    pub fn report(&mut self, kernel: &str) -> Report {
        let last = (self.reports.iter()).rposition(|(name, _)| name.starts_with(kernel));
        last.map_or_else(Report::default, |last| self.reports.remove(last).1)
    }

    /// Asserts that the block counters are ready for another launch.
    pub fn assert_counted(&mut self) -> Result<(), Fault> {
        if let Some((address, count)) = self.counters {
            let counters = self.memory.read::<u32>(address.address(), count)?;
            assert_eq!(counters, vec![0; count]);
        }
        Ok(())
    }

    /// Returns how many blocks of a launch the device holds together, as its driver would say: as many as find
    /// registers, which the kernel's launch bounds promise, and shared memory, of which each block costs
    /// 1 KiB more than it asks for, in units of 128 bytes.
    fn resident<P>(&self, launch: &Launch<P>) -> u32 {
        let threads: u32 = launch.block.iter().product();
        let by_registers = launch_bounds(launch.kernel)
            .map_or(0, |bounds| bounds.threads * bounds.blocks / threads);
        let held = launch.shared_bytes.next_multiple_of(128) + (1 << 10);
        let by_shared_memory = self.device.shared_bytes_per_multiprocessor / held;
        self.device.multiprocessors * by_registers.min(by_shared_memory)
    }
}

impl Stream for EmulatedStream<'_> {
    type Error = Failure;

    /// Never gives the same memory again: whoever goes on with what was under a name reads nothing there.
    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N], Failure> {
        Ok(parts.map(|(name, bytes)| {
            if bytes == 0 {
                return None;
            }
            let address = self.memory.allocate::<u8>(name, bytes).address();
            if lifetime == Lifetime::Scratch {
                for (_, address) in self.scratch.extract_if(.., |(held, _)| *held == name) {
                    self.memory.free(address);
                }
                self.scratch.push((name, address));
            }
            DevicePtr::new(address)
        }))
    }

    /// Uploads each table by itself, so that none can be mistaken for the next.
    fn upload<const N: usize>(
        &mut self,
        tables: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N], Failure> {
        self.tables = tables.map(|(name, table)| (name, table.to_vec())).to_vec();
        Ok(tables.map(|(name, table)| {
            if table.is_empty() {
                return None;
            }
            let address = DevicePtr::new(self.memory.upload(name, table).address())?;
            if ["counters", "block counter"].contains(&name) {
                self.counters = Some((address, table.len()));
            }
            Some(address)
        }))
    }

    fn resident_blocks<P: Pod>(&self, launch: &Launch<P>) -> Result<Option<u32>, Failure> {
        Ok(Some(self.resident(launch).min(self.most_blocks)))
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<(), Failure> {
        let limits = Limits {
            shared_bytes: self.device.shared_bytes_per_block,
            resident_blocks: self.resident(launch),
        };
        let emulator = Emulator {
            limits,
            ..*self.emulator
        };
        let issued = candle_trie_emulator::Launch {
            kernel: launch.kernel,
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            cooperative: launch.cooperative,
            params: bytemuck::bytes_of(&launch.params),
        };
        let report = emulator.run(&issued, &mut self.memory)?;
        self.reports.push((launch.kernel, report));
        self.launches.push(Issued::of(launch));
        Ok(())
    }
}
