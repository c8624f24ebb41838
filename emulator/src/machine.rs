//! Runs a launch. Threads are fibers, of which one runs at a time, in a random order that a seed determines.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::process::abort;

use crate::block::{Block, State};
use crate::fault::{Fault, Thread};
use crate::fiber::{Fiber, Stacks};
use crate::kernels::Kernel;
use crate::memory::Memory;
use crate::order::{Knowledge, WARP};
use crate::random::Random;
use crate::site::Site;
use crate::traffic::{self, Place, Traffic};

thread_local! {
    /// The machine that runs on this thread of the host, which the hooks of kernels use.
    static RUNNING: Cell<*mut Machine<'static>> = const { Cell::new(std::ptr::null_mut()) };
}

/// A running launch.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'static Kernel,
    params: Vec<u128>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) cooperative: bool,
    pub(crate) memory: &'a mut Memory,
    pub(crate) random: Random,
    pub(crate) traced: bool,
    pub(crate) step_limit: u64,
    pub(crate) steps: u64,
    /// The traffic of each buffer, and in the last element that of shared memory.
    pub(crate) traffic: Vec<Traffic>,
    /// The traffic by site and index in `traffic`, in a traced launch.
    pub(crate) by_site: HashMap<(Site, usize), Traffic>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) ready: Vec<(usize, usize)>,
    pub(crate) atomics: HashMap<usize, Knowledge>,
    pub(crate) current: (usize, usize),
    scheduler: Fiber,
    fault: Option<Fault>,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(
        kernel: &'static Kernel,
        memory: &'a mut Memory,
        grid: [u32; 3],
        block: [u32; 3],
    ) -> Self {
        let traffic = vec![Traffic::default(); memory.regions().len() + 1];
        Self {
            kernel,
            params: Vec::new(),
            grid,
            block,
            cooperative: false,
            memory,
            random: Random::new(0),
            traced: false,
            step_limit: u64::MAX,
            steps: 0,
            traffic,
            by_site: HashMap::new(),
            blocks: Vec::new(),
            ready: Vec::new(),
            atomics: HashMap::new(),
            current: (0, 0),
            scheduler: Fiber::running(),
            fault: None,
        }
    }

    /// Copies the parameters to aligned memory.
    pub(crate) fn set_params(&mut self, params: &[u8]) {
        self.params = vec![0; params.len().div_ceil(size_of::<u128>())];
        bytemuck::cast_slice_mut(&mut self.params)[..params.len()].copy_from_slice(params);
    }

    pub(crate) fn threads_per_block(&self) -> usize {
        self.block.iter().product::<u32>() as usize
    }

    /// Runs every block: all at the same time for a cooperative launch, and otherwise one after the other.
    pub(crate) fn run(&mut self, shared_bytes: u32) -> Result<(), Fault> {
        let mut order: Vec<u32> = (0..self.grid.iter().product()).collect();
        self.random.shuffle(&mut order);
        let together = if self.cooperative { order.len() } else { 1 };
        let threads = self.threads_per_block();
        let mut stacks = Stacks::new(together * threads);
        self.blocks = (0..together).map(|_| Block::new(shared_bytes)).collect();
        for wave in order.chunks(together) {
            for (place, &index) in wave.iter().enumerate() {
                self.blocks[place].begin(index, threads, &mut stacks, place * threads, thread_main);
                self.ready
                    .extend((0..threads).map(|thread| (place, thread)));
            }
            self.run_wave()?;
            self.count_traffic();
        }
        Ok(())
    }

    fn run_wave(&mut self) -> Result<(), Fault> {
        while !self.ready.is_empty() {
            let next = self.random.below(self.ready.len());
            self.current = self.ready.swap_remove(next);
            let (block, thread) = self.current;
            let machine = std::ptr::from_mut(self).cast::<Machine<'static>>();
            let outer = RUNNING.replace(machine);
            // SAFETY: the machine does not move while the fiber runs. The fiber accesses it through `RUNNING` only, and this
            // borrow is not used meanwhile. The fiber belongs to a thread that has not returned.
            unsafe {
                Fiber::switch(
                    &raw mut (*machine).scheduler,
                    &raw const (&(*machine).blocks)[block].threads[thread].fiber,
                )
            };
            RUNNING.set(outer);
            if let Some(fault) = self.fault.take() {
                return Err(fault);
            }
            if self.blocks[block].threads[thread].fiber.overflowed() {
                return Err(Fault::StackOverflow(self.who()));
            }
            self.release_arrived()?;
        }
        self.all_returned()
    }

    fn count_traffic(&mut self) {
        if !self.traced {
            return;
        }
        let shared = self.traffic.len() - 1;
        for block in &mut self.blocks {
            let traces: Vec<_> = block
                .threads
                .iter_mut()
                .map(|thread| std::mem::take(&mut thread.trace))
                .collect();
            for warp in traces.chunks(WARP) {
                traffic::add_warp_accesses(warp, |site, place, traffic| {
                    let index = if let Place::Buffer(index) = place {
                        index
                    } else {
                        shared
                    };
                    // The bytes were counted at each access.
                    let uncounted = Traffic {
                        loaded: 0,
                        stored: 0,
                        ..traffic
                    };
                    self.traffic[index] += uncounted;
                    *self.by_site.entry((site, index)).or_default() += traffic;
                });
            }
        }
    }

    /// Returns the current thread, for messages.
    pub(crate) fn who(&self) -> Thread {
        self.thread_at(self.current)
    }

    pub(crate) fn thread_at(&self, (block, thread): (usize, usize)) -> Thread {
        Thread {
            block: self.blocks[block].index,
            thread: thread as u32,
        }
    }

    pub(crate) fn thread_mut(&mut self) -> &mut crate::block::Thread {
        let (block, thread) = self.current;
        &mut self.blocks[block].threads[thread]
    }

    pub(crate) fn by_global_index(&self, thread: u32) -> Thread {
        let size = self.threads_per_block() as u32;
        Thread {
            block: thread / size,
            thread: thread % size,
        }
    }

    pub(crate) fn step(&mut self, site: Site) -> Result<(), Fault> {
        self.steps += 1;
        if self.steps > self.step_limit {
            return Err(Fault::Endless {
                steps: self.step_limit,
                thread: self.who(),
                site,
            });
        }
        Ok(())
    }
}

/// Calls `act` with the machine that runs on this thread of the host.
///
/// A fault ends the launch: the thread that caused it is suspended and never resumed.
pub(crate) fn with_machine<R>(act: impl FnOnce(&mut Machine<'static>) -> Result<R, Fault>) -> R {
    // SAFETY: kernels run only inside `run_wave`, which has stored its machine here. One fiber runs at a time, and none keeps a
    // borrow while another runs.
    let machine = unsafe { RUNNING.get().as_mut() };
    let Some(machine) = machine else { abort() };
    match act(machine) {
        Ok(result) => result,
        Err(fault) => {
            machine.fault = Some(fault);
            suspend();
            abort()
        }
    }
}

/// Returns control to the scheduler until it resumes this thread.
pub(crate) fn suspend() {
    let machine = RUNNING.get();
    // SAFETY: as in `with_machine`. The running fiber is that of the current thread, and the scheduler is suspended in
    // `run_wave`.
    unsafe {
        let (block, thread) = (*machine).current;
        let fiber = &raw mut (&mut (*machine).blocks)[block].threads[thread].fiber;
        Fiber::switch(fiber, &raw const (*machine).scheduler);
    }
}

/// The entry of every thread of a kernel.
extern "C" fn thread_main() -> ! {
    let (enter, params) = with_machine(|machine| {
        Ok((
            machine.kernel.enter,
            machine.params.as_ptr().cast::<c_void>(),
        ))
    });
    // SAFETY: the parameters are an aligned copy of the kernel's parameter struct, whose size is checked at launch.
    unsafe { enter(params) };
    with_machine(|machine| {
        machine.check_no_copy_in_flight()?;
        machine.thread_mut().state = State::Returned;
        Ok(())
    });
    suspend();
    abort()
}
