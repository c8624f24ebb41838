//! The emulator as what passes are issued to.

use bytemuck::Pod;
use candle_trie::Error;
use candle_trie::launch::{DeviceLimits, DevicePtr, Launch, Lifetime, Queue};
use candle_trie_emulator::{Emulator, Fault, Memory, Report};

use crate::emulated;
use crate::plan::{Issued, Tables, issued};

pub struct EmulatorQueue<'a> {
    pub memory: Memory,
    emulator: &'a Emulator,
    device: DeviceLimits,
    /// Of a cooperative grid, at most so many blocks.
    most_blocks: u32,
    reports: Vec<(&'static str, Report)>,
    /// What was uploaded, and launched.
    pub tables: Tables,
    pub launches: Vec<Issued>,
    /// Where counters are, and how many.
    counters: Option<(DevicePtr, usize)>,
    scratch: Vec<(&'static str, u64)>,
}

/// What a kernel does wrong. Plans that refuse are a fault of the test.
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

impl<'a> EmulatorQueue<'a> {
    pub fn new(emulator: &'a Emulator, device: DeviceLimits, most_blocks: u32) -> Self {
        Self {
            memory: Memory::new(),
            emulator,
            device,
            most_blocks,
            reports: Vec::new(),
            tables: Tables::default(),
            launches: Vec::new(),
            counters: None,
            scratch: Vec::new(),
        }
    }

    /// As if the queue were dropped, and another went on with what it keeps.
    pub fn free_scratch(&mut self) {
        for (_, address) in self.scratch.drain(..) {
            self.memory.free(address);
        }
    }

    /// Of the last launch of a kernel whose name begins so; an empty one where there was none.
    pub fn report(&mut self, kernel: &str) -> Report {
        let last = (self.reports.iter()).rposition(|(name, _)| name.starts_with(kernel));
        last.map_or_else(Report::default, |last| self.reports.remove(last).1)
    }

    /// That the counters are ready for another launch.
    pub fn assert_counted(&mut self) -> Result<(), Fault> {
        if let Some((address, count)) = self.counters {
            let counters = self.memory.read::<u32>(address.address(), count)?;
            assert_eq!(counters, vec![0; count]);
        }
        Ok(())
    }
}

impl Queue for EmulatorQueue<'_> {
    type Error = Failure;

    /// Never the same memory again: whoever goes on with what was under a name reads nothing there.
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

    /// Each part by itself, so that none can be mistaken for the next.
    fn upload<const N: usize>(
        &mut self,
        parts: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N], Failure> {
        self.tables = Tables::new(&parts);
        Ok(parts.map(|(name, words)| {
            if words.is_empty() {
                return None;
            }
            let address = DevicePtr::new(self.memory.upload(name, words).address())?;
            if name == "counters" {
                self.counters = Some((address, words.len()));
            }
            Some(address)
        }))
    }

    fn resident_blocks<P: Pod>(&self, launch: &Launch<P>) -> Result<Option<u32>, Failure> {
        let resident = emulated::resident_blocks(&self.device, launch);
        Ok(Some(resident.min(self.most_blocks)))
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<(), Failure> {
        let report = emulated::run_on(&self.device, self.emulator, launch, &mut self.memory)?;
        self.reports.push((launch.kernel, report));
        self.launches.push(issued(launch));
        Ok(())
    }
}
