//! Runs a launch: threads as fibers, one at a time, in an order drawn from a seed.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::process::abort;

use crate::block::{Block, State};
use crate::fault::{Fault, Thread};
use crate::fiber::{Fiber, Stacks};
use crate::kernels::Kernel;
use crate::memory::Memory;
use crate::order::{Knowledge, Observer, WARP};
use crate::random::Random;
use crate::shadow::{Access, Objection};
use crate::site::Site;
use crate::traffic::{self, Event, Place, Traffic};

/// What a lane names for `ldmatrix`.
const MATRIX_ROW_BYTES: u32 = 16;

thread_local! {
    /// The machine that runs on this thread of the host, for the calls that kernels make.
    static RUNNING: Cell<*mut Machine<'static>> = const { Cell::new(std::ptr::null_mut()) };
}

/// A launch under way.
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
    /// By buffer, and of shared memory at the end.
    pub(crate) traffic: Vec<Traffic>,
    /// Of a traced launch: by place in the source too.
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

    /// A copy of the parameters, padded.
    pub(crate) fn set_params(&mut self, params: &[u8]) {
        self.params = vec![0; params.len().div_ceil(size_of::<u128>())];
        bytemuck::cast_slice_mut(&mut self.params)[..params.len()].copy_from_slice(params);
    }

    pub(crate) fn threads_per_block(&self) -> usize {
        self.block.iter().product::<u32>() as usize
    }

    /// Runs every block: of a cooperative launch all together, else one after the other.
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
            self.add_up_traces();
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
            // SAFETY: the machine stays where it is while the fiber runs, which reaches it through
            // `RUNNING` alone, and this borrow is not used meanwhile. The fiber belongs to a thread
            // that has begun and not returned.
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

    fn add_up_traces(&mut self) {
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
                traffic::of_warp(warp, |site, place, traffic| {
                    let index = if let Place::Buffer(index) = place {
                        index
                    } else {
                        shared
                    };
                    // Its bytes have been counted.
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

    /// The thread that runs, for people.
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

    fn by_global_index(&self, thread: u32) -> Thread {
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

    /// A thread is about to touch memory.
    #[inline]
    pub(crate) fn access(
        &mut self,
        address: usize,
        bytes: u32,
        access: Access,
        site: Site,
    ) -> Result<(), Fault> {
        if self.thread_mut().fiber.stack().contains(&address) {
            return Ok(());
        }
        self.step(site)?;
        let place = self.touch(address, bytes, access, site)?;
        let counted = match place {
            Place::Buffer(index) => index,
            Place::Shared => self.traffic.len() - 1,
        };
        self.traffic[counted].count(access, u64::from(bytes));
        if self.traced {
            let thread = self.thread_mut();
            thread.trace.push(Event {
                site,
                epoch: thread.order.barriers() + thread.commits,
                place,
                access,
                bytes,
                address: address as u64,
            });
        }
        Ok(())
    }

    /// Whether the current thread may touch these bytes, and where they are.
    #[inline]
    pub(crate) fn touch(
        &mut self,
        address: usize,
        bytes: u32,
        access: Access,
        site: Site,
    ) -> Result<Place, Fault> {
        if bytes.is_power_of_two() && bytes <= 16 && !address.is_multiple_of(bytes as usize) {
            return Err(self.misaligned(address, bytes, site));
        }
        let threads_per_block = self.threads_per_block() as u32;
        let (b, t) = self.current;
        let Block {
            index,
            shared,
            threads,
            ..
        } = &mut self.blocks[b];
        let (place, region) = if shared.contains(address) {
            (Place::Shared, shared)
        } else if let Some(found) = self.memory.find(address) {
            (Place::Buffer(found), self.memory.region(found))
        } else {
            return Err(self.out_of_bounds(address, bytes, access, site));
        };
        let offset = address - region.start;
        let end = offset + bytes as usize;
        if end > region.bytes {
            let past = region.start + region.bytes;
            return Err(self.out_of_bounds(past, bytes, access, site));
        }
        let me = Observer {
            thread: *index * threads_per_block + t as u32,
            threads_per_block,
            order: &threads[t].order,
        };
        if let Err(objection) = region.shadow.touch(offset..end, access, site, &me) {
            let buffer = region.name.clone();
            return Err(self.object(objection, buffer, offset as u64, site));
        }
        Ok(place)
    }

    /// The current thread names a row for `ldmatrix`: gives where that is in shared memory. It is loaded
    /// when all lanes have come.
    pub(crate) fn name_matrix_row(&mut self, row: usize, site: Site) -> Result<u32, Fault> {
        let place = if self.memory.find(row).is_some() {
            "global memory"
        } else if self.thread_mut().fiber.stack().contains(&row) {
            "a local variable"
        } else {
            return self.count_matrix_row(row, site);
        };
        Err(Fault::Warp {
            reason: format!("names a row of {place}, and ldmatrix loads from shared memory alone"),
            thread: self.who(),
            site,
        })
    }

    fn count_matrix_row(&mut self, row: usize, site: Site) -> Result<u32, Fault> {
        self.step(site)?;
        let shared = &self.blocks[self.current.0].shared;
        if !shared.contains(row) {
            return Err(self.out_of_bounds(row, MATRIX_ROW_BYTES, Access::Load, site));
        }
        if !row.is_multiple_of(MATRIX_ROW_BYTES as usize) {
            return Err(self.misaligned(row, MATRIX_ROW_BYTES, site));
        }
        let offset = row - shared.start;
        if offset + MATRIX_ROW_BYTES as usize > shared.bytes {
            let past = shared.start + shared.bytes;
            return Err(self.out_of_bounds(past, MATRIX_ROW_BYTES, Access::Load, site));
        }
        let traffic = self.traffic.last_mut().expect("that of shared memory");
        traffic.count(Access::Load, MATRIX_ROW_BYTES.into());
        if self.traced {
            let thread = self.thread_mut();
            thread.trace.push(Event {
                site,
                epoch: thread.order.barriers() + thread.commits,
                place: Place::Shared,
                access: Access::Load,
                bytes: MATRIX_ROW_BYTES,
                address: row as u64,
            });
        }
        Ok(offset as u32)
    }

    /// All lanes of the current thread's warp have come to an `ldmatrix` of so many matrices. Each gets
    /// some of every row, so each row is a load by all of them.
    pub(crate) fn load_matrices(&mut self, count: u32) -> Result<(), Fault> {
        let threads_per_block = self.threads_per_block() as u32;
        let (place, thread) = self.current;
        let first = thread / WARP * WARP;
        let Block {
            index,
            shared,
            threads,
            ..
        } = &mut self.blocks[place];
        let lanes: [Observer<'_>; WARP] = std::array::from_fn(|lane| Observer {
            thread: *index * threads_per_block + (first + lane) as u32,
            threads_per_block,
            order: &threads[first + lane].order,
        });
        for lane in 0..8 * count as usize {
            let State::AtWarp(arrival) = threads[first + lane].state else {
                continue;
            };
            let row = arrival.source as usize;
            let range = row..row + MATRIX_ROW_BYTES as usize;
            if let Err((objection, lane)) =
                shared
                    .shadow
                    .load_together(range, arrival.site, &lanes, lane)
            {
                let (name, offset) = (shared.name.clone(), row as u64);
                let thread = self.thread_at((place, first + lane));
                return Err(self.objected(objection, name, offset, thread, arrival.site));
            }
        }
        Ok(())
    }

    #[cold]
    pub(crate) fn object(
        &self,
        objection: Objection,
        buffer: String,
        offset: u64,
        site: Site,
    ) -> Fault {
        self.objected(objection, buffer, offset, self.who(), site)
    }

    fn objected(
        &self,
        objection: Objection,
        buffer: String,
        offset: u64,
        thread: Thread,
        site: Site,
    ) -> Fault {
        match objection {
            Objection::NeverWritten => Fault::NeverWritten {
                buffer,
                offset,
                thread,
                site,
            },
            Objection::Race(mark) => {
                let earlier = (self.by_global_index(mark.thread), mark.site);
                Fault::Race {
                    buffer,
                    offset,
                    earlier,
                    later: (thread, site),
                }
            }
            Objection::UnderWay(mark) => Fault::Copy {
                reason: format!(
                    "touches byte {offset} of '{buffer}', where a copy is under way: {} has not awaited it since {}",
                    self.by_global_index(mark.thread),
                    mark.site
                ),
                thread,
                site,
            },
        }
    }

    #[cold]
    fn misaligned(&self, address: usize, bytes: u32, site: Site) -> Fault {
        Fault::Misaligned {
            bytes,
            address: address as u64,
            thread: self.who(),
            site,
        }
    }

    #[cold]
    fn out_of_bounds(&self, address: usize, bytes: u32, access: Access, site: Site) -> Fault {
        let shared = &self.blocks[self.current.0].shared;
        let past = address.wrapping_sub(shared.start + shared.bytes);
        let place = if past < 1 << 16 {
            format!(
                "{past} bytes past the end of shared memory ({} bytes)",
                shared.bytes
            )
        } else {
            self.memory.describe(address)
        };
        Fault::OutOfBounds {
            access,
            bytes,
            place,
            thread: self.who(),
            site,
        }
    }
}

/// Does `act` on the machine that runs on this thread of the host.
///
/// A fault ends the launch: the thread that caused it is left where it is and never goes on.
pub(crate) fn with_machine<R>(act: impl FnOnce(&mut Machine<'static>) -> Result<R, Fault>) -> R {
    // SAFETY: kernels run only inside `run_wave`, which has put its machine here; fibers take
    // turns, and none keeps a borrow while another runs.
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

/// Lets the others run, until the scheduler comes back to this thread.
pub(crate) fn suspend() {
    let machine = RUNNING.get();
    // SAFETY: as in `with_machine`; the running fiber is the current thread's, and the scheduler
    // waits in `run_wave`.
    unsafe {
        let (block, thread) = (*machine).current;
        let fiber = &raw mut (&mut (*machine).blocks)[block].threads[thread].fiber;
        Fiber::switch(fiber, &raw const (*machine).scheduler);
    }
}

/// Where every thread of a kernel begins.
extern "C" fn thread_main() -> ! {
    let (enter, params) = with_machine(|machine| {
        Ok((
            machine.kernel.enter,
            machine.params.as_ptr().cast::<c_void>(),
        ))
    });
    // SAFETY: the parameters are a copy, aligned, of as many bytes as the kernel's parameter struct
    // has (checked at launch).
    unsafe { enter(params) };
    with_machine(|machine| {
        machine.no_copy_under_way()?;
        machine.thread_mut().state = State::Returned;
        Ok(())
    });
    suspend();
    abort()
}
