//! Launches and their reports.

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
    /// The largest shared memory of one block, in bytes.
    pub shared_bytes: u32,
    /// The largest number of blocks of a cooperative launch, all of which must be resident at the same time.
    pub resident_blocks: u32,
}

impl Default for Limits {
    /// Returns the shared memory of the smallest supported device, and few blocks, because each thread needs a stack.
    fn default() -> Self {
        Self {
            shared_bytes: 99 << 10,
            resident_blocks: 64,
        }
    }
}

/// A kernel launch: the kernel, the launch shape and the parameters.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's name in its source.
    pub kernel: &'a str,
    /// The number of blocks in each dimension.
    pub grid: [u32; 3],
    /// The number of threads of a block in each dimension.
    pub block: [u32; 3],
    /// The dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Whether all blocks are resident at the same time and may wait for each other.
    pub cooperative: bool,
    /// The bytes of the parameter struct.
    pub params: &'a [u8],
}

/// The settings of the emulator.
#[derive(Clone, Copy, Debug)]
pub struct Emulator {
    /// The seed of the random order in which threads run.
    pub seed: u64,
    /// Whether sectors and bank conflicts are counted, which takes time and memory.
    pub traced: bool,
    /// The limits of the device.
    pub limits: Limits,
    /// The number of steps after which a launch fails with [`Fault::Endless`].
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
    /// The number of loads, stores, barriers and warp operations of all threads.
    pub steps: u64,
    /// The traffic of the blocks' shared memory.
    pub shared: Traffic,
    buffers: Vec<(String, Traffic)>,
    /// The traffic by site and index of the buffer, where the index after the last buffer stands for shared memory.
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

    /// Returns the traffic of each line of the source with each buffer and with shared memory, in a traced launch.
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
    /// Makes an emulator that runs threads in the order of this seed.
    pub fn with_seed(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// Returns the emulator with counting of sectors and bank conflicts.
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
        memory.end_launch();
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
                "{blocks} blocks of {threads} threads are more than the emulator supports"
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

/// Runs `work` once for each seed, and refuses results that do not have the same bits for all.
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
