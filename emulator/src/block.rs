//! Blocks whose threads have begun and not all returned.

use std::collections::VecDeque;
use std::fmt;

use crate::fiber::{Fiber, Stacks};
use crate::memory::Region;
use crate::order::{Order, WARP};
use crate::site::Site;
use crate::traffic::Event;

/// An operation that the lanes of a warp do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WarpOperation {
    Barrier,
    Shuffle,
    Ballot,
    /// `ldmatrix` of so many matrices.
    LoadMatrices {
        count: u32,
        transposed: bool,
    },
    /// `mma`, of f16 or of bf16.
    Multiply {
        half: bool,
    },
}

impl fmt::Display for WarpOperation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Barrier => write!(formatter, "__syncwarp"),
            Self::Shuffle => write!(formatter, "a shuffle"),
            Self::Ballot => write!(formatter, "a vote"),
            Self::LoadMatrices { count, transposed } => {
                let transposed = if *transposed { ".trans" } else { "" };
                write!(formatter, "ldmatrix.x{count}{transposed}")
            }
            Self::Multiply { half: true } => write!(formatter, "mma.f16"),
            Self::Multiply { half: false } => write!(formatter, "mma.bf16"),
        }
    }
}

impl WarpOperation {
    /// Returns whether all lanes must be at the same instruction (`.aligned`, in PTX).
    pub(crate) fn is_aligned(self) -> bool {
        matches!(self, Self::LoadMatrices { .. } | Self::Multiply { .. })
    }
}

/// A function that replaces the parts of the lanes of a whole warp by their results.
pub(crate) type Together = unsafe extern "C" fn(parts: *const u64);

/// A lane's part in a warp operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WarpArrival {
    pub(crate) operation: WarpOperation,
    pub(crate) mask: u32,
    /// The value of a shuffle or a vote, or the address of the lane's part in a matrix operation.
    pub(crate) value: u64,
    /// The lane whose value a shuffle asks for, or the offset in shared memory of the row that a lane names for
    /// `ldmatrix`.
    pub(crate) source: u32,
    /// The matrix operation itself.
    pub(crate) together: Option<Together>,
    pub(crate) site: Site,
}

/// A thread's part in a barrier of its block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockArrival {
    /// Whether the barrier counts predicates.
    pub(crate) counts: bool,
    pub(crate) predicate: bool,
    pub(crate) site: Site,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    Runnable,
    AtWarp(WarpArrival),
    AtBlock(BlockArrival),
    AtGrid(Site),
    Returned,
}

impl State {
    /// Returns where a thread waits.
    pub(crate) fn site(&self) -> Option<Site> {
        match self {
            Self::AtWarp(arrival) => Some(arrival.site),
            Self::AtBlock(arrival) => Some(arrival.site),
            Self::AtGrid(site) => Some(*site),
            Self::Runnable | Self::Returned => None,
        }
    }
}

/// The bytes of an asynchronous copy.
pub(crate) const COPY_BYTES: usize = 16;

/// An asynchronous copy under way, between two addresses.
#[derive(Clone, Copy)]
pub(crate) struct AsyncCopy {
    pub(crate) source: usize,
    pub(crate) destination: usize,
    /// The bytes of the source when the copy began.
    pub(crate) found: [u8; COPY_BYTES],
    pub(crate) site: Site,
}

pub(crate) struct Thread {
    pub(crate) fiber: Fiber,
    pub(crate) state: State,
    pub(crate) order: Order,
    /// The result of the operation that it waited for.
    pub(crate) result: u64,
    /// The copies that it has begun and not awaited.
    pub(crate) copies: Vec<AsyncCopy>,
    /// How many of these belong to each group that it has committed and not awaited, oldest first.
    /// What is left over belongs to none.
    pub(crate) copy_groups: VecDeque<usize>,
    /// How many groups it has committed.
    pub(crate) commits: u32,
    pub(crate) trace: Vec<Event>,
}

/// Lanes of a warp, as bits. The masks of warp operations that lanes wait in never overlap.
#[derive(Clone, Copy, Default)]
pub(crate) struct Warp {
    /// The lanes that wait in a warp operation.
    pub(crate) waiting: u32,
    /// The lanes that the masks of those operations name.
    pub(crate) expected: u32,
    pub(crate) returned: u32,
}

/// A block of the grid whose threads have begun and not all returned.
pub(crate) struct Block {
    /// Its place in the grid, x fastest.
    pub(crate) index: u32,
    pub(crate) shared: Region,
    pub(crate) threads: Vec<Thread>,
    pub(crate) warps: Vec<Warp>,
    pub(crate) at_barrier: usize,
    pub(crate) at_grid: usize,
}

impl Block {
    pub(crate) fn new(shared_bytes: u32) -> Self {
        let shared = Region::new("shared memory", shared_bytes as usize, false);
        Self {
            index: 0,
            shared,
            threads: Vec::new(),
            warps: Vec::new(),
            at_barrier: 0,
            at_grid: 0,
        }
    }

    /// Begins as block `index` of the grid, with nothing left of the one before. Its stacks begin
    /// at `first_stack`.
    pub(crate) fn begin(
        &mut self,
        index: u32,
        threads: usize,
        stacks: &mut Stacks,
        first_stack: usize,
        entry: extern "C" fn() -> !,
    ) {
        self.index = index;
        self.shared.shadow.forget();
        self.warps = vec![Warp::default(); threads.div_ceil(WARP)];
        self.threads.clear();
        self.threads.extend((0..threads).map(|thread| Thread {
            fiber: stacks.fiber(first_stack + thread, entry),
            state: State::Runnable,
            order: Order::default(),
            result: 0,
            copies: Vec::new(),
            copy_groups: VecDeque::new(),
            commits: 0,
            trace: Vec::new(),
        }));
    }

    /// The threads of a warp that a mask names, as (lane, index in the block).
    pub(crate) fn lanes(thread: usize, mask: u32) -> impl Iterator<Item = (usize, usize)> + Clone {
        let first = thread / WARP * WARP;
        (0..WARP)
            .filter(move |lane| mask >> lane & 1 == 1)
            .map(move |lane| (lane, first + lane))
    }
}
