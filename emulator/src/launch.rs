//! A launch, and what it reports.

use std::collections::{BTreeMap, HashMap};

use bytemuck::Pod;

use crate::fault::Fault;
use crate::kernels::Kernel;
use crate::machine::Machine;
use crate::memory::Memory;
use crate::random::Random;
use crate::site::Site;
use crate::traffic::Traffic;

/// The limits of a device.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Shared memory of one block.
    pub shared_bytes: u32,
    /// How many blocks can be alive together: what a cooperative launch may have.
    pub resident_blocks: u32,
}

impl Default for Limits {
    /// The shared memory of the smallest device the kernels are for, and few blocks, as each thread
    /// is a stack.
    fn default() -> Self {
        Self {
            shared_bytes: 99 << 10,
            resident_blocks: 64,
        }
    }
}

/// A kernel and the shape it is launched in.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The name that the source of the kernel gives it.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Whether all blocks are alive together and may wait for each other.
    pub cooperative: bool,
    /// The bytes of its parameter struct.
    pub params: &'a [u8],
}

/// The settings by which launches are run.
#[derive(Clone, Copy, Debug)]
pub struct Emulator {
    /// The seed that the order of the threads is drawn from.
    pub seed: u64,
    /// Whether sectors and bank conflicts are counted, which takes time and memory.
    pub traced: bool,
    /// The limits of the device.
    pub limits: Limits,
    /// After how many steps a launch counts as endless.
    pub step_limit: u64,
}

impl Default for Emulator {
    fn default() -> Self {
        Self {
            seed: 0,
            traced: false,
            limits: Limits::default(),
            step_limit: 4 << 30,
        }
    }
}

/// A report of what a launch did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Loads, stores, barriers and warp operations of all threads.
    pub steps: u64,
    /// The traffic of the blocks' shared memory.
    pub shared: Traffic,
    buffers: Vec<(String, Traffic)>,
    /// The traffic by place in the source and buffer; behind the last buffer, shared memory.
    by_site: HashMap<(Site, usize), Traffic>,
}

/// The traffic of one line of a kernel's source, in a traced launch.
#[derive(Clone, Debug)]
pub struct LineTraffic {
    /// `file:line`, followed by the lines that it is inlined at, innermost first.
    pub lines: Vec<String>,
    /// The buffer, or `None` for shared memory.
    pub buffer: Option<String>,
    /// The traffic of the line.
    pub traffic: Traffic,
}

impl Report {
    /// Returns the traffic of the buffer of this name.
    pub fn traffic(&self, buffer: &str) -> Traffic {
        self.buffers.iter().filter(|(name, _)| name == buffer).fold(
            Traffic::default(),
            |mut all, &(_, one)| {
                all += one;
                all
            },
        )
    }

    /// Returns what each line moved to and from each buffer and shared memory, in a traced launch.
    pub fn by_line(&self) -> Vec<LineTraffic> {
        let mut by_line = BTreeMap::<_, Traffic>::new();
        for (&(site, index), &traffic) in &self.by_site {
            *by_line.entry((site.lines(), index)).or_default() += traffic;
        }
        (by_line.into_iter())
            .map(|((lines, index), traffic)| LineTraffic {
                lines,
                buffer: self.buffers.get(index).map(|(name, _)| name.clone()),
                traffic,
            })
            .collect()
    }
}

impl Emulator {
    /// Threads in the order that this seed gives.
    pub fn with_seed(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// Counts sectors and bank conflicts too.
    pub fn traced(self) -> Self {
        Self {
            traced: true,
            ..self
        }
    }

    /// Runs a launch to its end or to its first fault.
    pub fn run(&self, launch: &Launch<'_>, memory: &mut Memory) -> Result<Report, Fault> {
        if let Some(reason) = crate::skipped() {
            return Err(Fault::NotEmulated(reason));
        }
        let kernel = Kernel::find(launch.kernel)
            .ok_or_else(|| Fault::Launch(format!("there is no kernel '{}'", launch.kernel)))?;
        self.check(launch, kernel).map_err(Fault::Launch)?;
        let mut machine = Machine::new(kernel, memory, launch.grid, launch.block);
        machine.set_params(launch.params);
        machine.cooperative = launch.cooperative;
        machine.random = Random::new(self.seed);
        machine.traced = self.traced;
        machine.step_limit = self.step_limit;
        let outcome = machine.run(launch.shared_bytes);
        let (steps, mut traffic) = (machine.steps, std::mem::take(&mut machine.traffic));
        let by_site = std::mem::take(&mut machine.by_site);
        drop(machine);
        memory.settle();
        outcome?;
        let shared = traffic.pop().unwrap_or_default();
        let buffers = memory
            .regions()
            .iter()
            .map(|region| region.name.clone())
            .zip(traffic)
            .collect();
        Ok(Report {
            steps,
            shared,
            buffers,
            by_site,
        })
    }

    fn check(&self, launch: &Launch<'_>, kernel: &Kernel) -> Result<(), String> {
        let Launch {
            grid,
            block,
            shared_bytes,
            params,
            ..
        } = launch;
        let product = |shape: &[u32; 3]| {
            shape
                .iter()
                .map(|&extent| u64::from(extent))
                .product::<u64>()
        };
        let (blocks, threads) = (product(grid), product(block));
        if blocks == 0 || threads == 0 {
            return Err(format!(
                "a grid of {grid:?} blocks of {block:?} threads is empty"
            ));
        }
        if blocks * threads >= u64::from(u32::MAX) - 1 {
            return Err(format!(
                "{blocks} blocks of {threads} threads are more than the emulator numbers"
            ));
        }
        if threads > u64::from(kernel.threads) {
            return Err(format!(
                "{threads} threads a block, and the kernel is bound to {}",
                kernel.threads
            ));
        }
        if *shared_bytes > self.limits.shared_bytes {
            return Err(format!(
                "{shared_bytes} bytes of shared memory, and the device has {}",
                self.limits.shared_bytes
            ));
        }
        if launch.cooperative && blocks > u64::from(self.limits.resident_blocks) {
            return Err(format!(
                "{blocks} cooperative blocks, and the device holds {}",
                self.limits.resident_blocks
            ));
        }
        if params.len() != kernel.params_bytes as usize {
            return Err(format!(
                "{} bytes of parameters, and the kernel takes {}",
                params.len(),
                kernel.params_bytes
            ));
        }
        Ok(())
    }
}

/// Runs `work` once for each seed, and demands the same bits of all.
pub fn same_for_every_schedule<T: Pod>(
    seeds: impl IntoIterator<Item = u64>,
    mut work: impl FnMut(Emulator) -> Result<Vec<T>, Fault>,
) -> Result<Vec<T>, Fault> {
    let mut first: Option<(u64, Vec<T>)> = None;
    for seed in seeds {
        let result = work(Emulator::with_seed(seed))?;
        let Some((first_seed, expected)) = &first else {
            first = Some((seed, result));
            continue;
        };
        let (a, b) = (
            bytemuck::cast_slice::<T, u8>(expected),
            bytemuck::cast_slice::<T, u8>(&result),
        );
        if a != b {
            let byte = a
                .iter()
                .zip(b)
                .position(|(a, b)| a != b)
                .unwrap_or(a.len().min(b.len()));
            return Err(Fault::ScheduleDependent {
                seeds: (*first_seed, seed),
                byte,
            });
        }
    }
    Ok(first.map(|(_, result)| result).unwrap_or_default())
}
