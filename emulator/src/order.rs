//! The happens-before relation of threads, as compressed vector clocks.
//!
//! A thread's clock counts the barriers that it has passed (high half) and its warp synchronisations since the last barrier
//! (low half). A thread "knows" another up to a clock if all that the other did before this clock happened before now. Barriers
//! are the same for all threads of a block, so one number says what a thread knows of other warps. Of its own warp it has a
//! number for each lane, and of other blocks one number, from the last grid synchronisation. Anything else is learnt through
//! fenced atomics, and is kept in maps.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use crate::site::Site;

pub(crate) const WARP: usize = 32;
const BARRIER: u64 = 1 << 32;

/// An access to memory: its thread, the clock of the thread, and its site in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) thread: u32,
    pub(crate) site: Site,
    clock: u64,
}

impl Mark {
    /// No access.
    pub(crate) const NONE: Self = Self {
        thread: u32::MAX,
        site: Site::HOST,
        clock: 0,
    };
    /// An access of the host between launches, which every thread knows.
    pub(crate) const HOST: Self = Self {
        thread: u32::MAX - 1,
        site: Site::HOST,
        clock: 0,
    };
    const ATOMIC: u64 = 1 << 63;
    const IN_FLIGHT: u64 = 1 << 62;

    fn clock(self) -> u64 {
        self.clock & !(Self::ATOMIC | Self::IN_FLIGHT)
    }

    /// Returns the mark of an asynchronous copy in flight.
    pub(crate) fn in_flight(self) -> Self {
        Self {
            clock: self.clock | Self::IN_FLIGHT,
            ..self
        }
    }

    pub(crate) fn arrived(self) -> Self {
        Self {
            clock: self.clock & !Self::IN_FLIGHT,
            ..self
        }
    }

    pub(crate) fn is_in_flight(self) -> bool {
        self.clock & Self::IN_FLIGHT != 0
    }

    pub(crate) fn is_atomic(self) -> bool {
        self.clock & Self::ATOMIC != 0
    }
}

/// The knowledge that a fence or an atomic carries: for blocks and for threads, the clocks up to which they are known.
#[derive(Clone, Default)]
pub(crate) struct Knowledge {
    blocks: HashMap<u32, u64>,
    threads: HashMap<u32, u64>,
}

impl Knowledge {
    pub(crate) fn join(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.blocks, &other.blocks),
            (&mut self.threads, &other.threads),
        ] {
            for (&key, &clock) in theirs {
                let known = mine.entry(key).or_default();
                *known = clock.max(*known);
            }
        }
    }
}

/// The clock of one thread, and the clocks up to which it knows others.
#[derive(Clone, Default)]
pub(crate) struct Order {
    clock: u64,
    other_blocks: u64,
    lanes: [u32; WARP],
    learnt: Option<Rc<Knowledge>>,
    /// The accesses that the last fence released. Later atomics pass them on.
    fenced: Option<Rc<Knowledge>>,
    /// The accesses that atomics have read since the last fence. The next fence acquires them.
    unfenced: Option<Box<Knowledge>>,
}

/// A thread that makes an access, with its clocks.
pub(crate) struct Observer<'a> {
    pub(crate) thread: u32,
    pub(crate) threads_per_block: u32,
    pub(crate) order: &'a Order,
}

impl Observer<'_> {
    pub(crate) fn mark(&self, site: Site, atomic: bool) -> Mark {
        Mark {
            thread: self.thread,
            site,
            clock: self.order.clock | if atomic { Mark::ATOMIC } else { 0 },
        }
    }

    fn block(&self) -> Range<u32> {
        let start = self.thread / self.threads_per_block * self.threads_per_block;
        start..start + self.threads_per_block
    }

    /// Returns whether the access `mark` happened before what this thread does now.
    #[inline]
    pub(crate) fn knows(&self, mark: Mark) -> bool {
        if mark.thread == self.thread || mark.thread >= Mark::HOST.thread {
            return true;
        }
        let block = self.block();
        let (order, clock) = (self.order, mark.clock());
        let known = if !block.contains(&mark.thread) {
            order.other_blocks
        } else {
            let (lane, mine) = (mark.thread - block.start, self.thread - block.start);
            let barriers = order.clock / BARRIER * BARRIER;
            let same_warp = lane / WARP as u32 == mine / WARP as u32;
            if same_warp {
                barriers + u64::from(order.lanes[lane as usize % WARP])
            } else {
                barriers
            }
        };
        clock < known
            || order
                .learnt
                .as_ref()
                .is_some_and(|learnt| self.has_learnt(learnt, mark))
    }

    /// Returns whether a barrier of the block, which all its threads have passed, is between the access `mark` of the same
    /// block and now.
    #[inline]
    pub(crate) fn knows_by_barrier(&self, mark: Mark) -> bool {
        mark.thread == Mark::HOST.thread || mark.clock() < self.order.clock / BARRIER * BARRIER
    }

    /// Returns the distance of two threads: 0 in the same warp, 1 in the same block, and 2 in different blocks.
    pub(crate) fn distance(&self, a: u32, b: u32) -> u32 {
        let size = self.threads_per_block;
        if a / size != b / size {
            2
        } else {
            u32::from(a % size / WARP as u32 != b % size / WARP as u32)
        }
    }

    fn has_learnt(&self, learnt: &Knowledge, mark: Mark) -> bool {
        let block = mark.thread / self.threads_per_block;
        let known = learnt
            .blocks
            .get(&block)
            .max(learnt.threads.get(&mark.thread));
        known.is_some_and(|&known| mark.clock() < known)
    }

    /// Returns the clocks after `__threadfence`: acquires what atomics have read, and releases what this thread knows to later
    /// atomics.
    pub(crate) fn fence(&self) -> Order {
        let mut order = self.order.clone();
        if let Some(read) = order.unfenced.take() {
            let mut learnt = order.learnt.as_deref().cloned().unwrap_or_default();
            learnt.join(&read);
            order.learnt = Some(Rc::new(learnt));
        }
        let mut known = order.learnt.as_deref().cloned().unwrap_or_default();
        let block = self.block();
        let barriers = order.clock / BARRIER * BARRIER;
        let warp = self.thread - (self.thread - block.start) % WARP as u32;
        let lanes = (warp..block.end.min(warp + WARP as u32)).zip(order.lanes);
        let mut here = Knowledge {
            blocks: HashMap::from([(block.start / self.threads_per_block, barriers)]),
            threads: lanes
                .map(|(thread, lane)| (thread, barriers + u64::from(lane)))
                .collect(),
        };
        here.threads.insert(self.thread, order.clock + 1);
        known.join(&here);
        order.fenced = Some(Rc::new(known));
        // Accesses after the fence have a later clock, and are not released by it.
        order.clock += 1;
        order
    }
}

impl Order {
    /// Returns the number of barriers of its block or of the grid that the thread has passed.
    pub(crate) fn barriers(&self) -> u32 {
        (self.clock / BARRIER) as u32
    }

    /// Updates the clocks for an atomic on a location that carries the knowledge `location`.
    pub(crate) fn atomic(&mut self, location: &mut Knowledge) {
        self.unfenced.get_or_insert_default().join(location);
        if let Some(fenced) = &self.fenced {
            location.join(fenced);
        }
    }

    /// Updates the clocks for `__syncwarp` of these lanes of a warp.
    pub(crate) fn join_lanes<'a>(lanes: impl Iterator<Item = (usize, &'a mut Order)>) {
        let mut lanes: Vec<_> = lanes.collect();
        let mut joined = [0; WARP];
        for (lane, order) in &lanes {
            for (all, known) in joined.iter_mut().zip(order.lanes) {
                *all = known.max(*all);
            }
            joined[*lane] = joined[*lane].max(order.clock as u32 + 1);
        }
        let learnt = Self::all_learnt(lanes.iter().map(|(_, order)| &**order));
        for (lane, order) in &mut lanes {
            order.lanes = joined;
            order.clock = order.clock / BARRIER * BARRIER + u64::from(joined[*lane]);
            order.learnt.clone_from(&learnt);
        }
    }

    /// Updates the clocks for a barrier of a block.
    pub(crate) fn join_block<'a>(threads: impl Iterator<Item = &'a mut Order>) {
        let mut threads: Vec<_> = threads.collect();
        let learnt = Self::all_learnt(threads.iter().map(|order| &**order));
        for order in &mut threads {
            order.pass_barrier(order.clock / BARRIER + 1);
            order.learnt.clone_from(&learnt);
        }
    }

    /// Updates the clocks for a synchronisation of the grid, after which all clocks are equal and all earlier accesses are
    /// known.
    pub(crate) fn join_grid<'a>(threads: impl Iterator<Item = &'a mut Order>) {
        let mut threads: Vec<_> = threads.collect();
        let barriers = threads
            .iter()
            .map(|order| order.clock / BARRIER + 1)
            .max()
            .unwrap_or_default();
        for order in &mut threads {
            order.pass_barrier(barriers);
            order.other_blocks = order.clock;
            order.learnt = None;
        }
    }

    fn pass_barrier(&mut self, barriers: u64) {
        self.clock = barriers * BARRIER;
        self.lanes = [0; WARP];
    }

    fn all_learnt<'a>(threads: impl Iterator<Item = &'a Self>) -> Option<Rc<Knowledge>> {
        let mut parts = threads.filter_map(|order| order.learnt.clone());
        let first = parts.next()?;
        let mut all = Knowledge::clone(&first);
        for part in parts.filter(|part| !Rc::ptr_eq(part, &first)) {
            all.join(&part);
        }
        Some(Rc::new(all))
    }
}
