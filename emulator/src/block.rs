//! The state of running blocks, warps and threads.

use std::collections::VecDeque;
use std::fmt;

use crate::fiber::{Fiber, Stacks};
use crate::memory::Region;
use crate::order::{Order, WARP};
use crate::site::Site;
use crate::traffic::Event;

/// An operation that the lanes of a warp execute together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WarpOperation {
    Barrier,
    Shuffle,
    Ballot,
    /// `ldmatrix` of `count` matrices.
    LoadMatrices {
        count: u32,
        transposed: bool,
    },
    /// `mma` of f16 if `half`, and of bf16 otherwise.
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

/// A function that computes a matrix operation: it replaces the operands of all 32 lanes by their results.
pub(crate) type Together = unsafe extern "C" fn(parts: *const u64);

/// The arrival of a lane at a warp operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WarpArrival {
    pub(crate) operation: WarpOperation,
    pub(crate) mask: u32,
    /// The value of a shuffle or a vote, or the address of the lane's operands of a matrix operation.
    pub(crate) value: u64,
    /// The source lane of a shuffle, or the offset in shared memory of the lane's row of `ldmatrix`.
    pub(crate) source: u32,
    /// The function that computes a matrix operation.
    pub(crate) together: Option<Together>,
    pub(crate) site: Site,
}

/// The arrival of a thread at a barrier of its block.
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
    /// Returns the site at which a thread waits; `None` if it does not wait.
    pub(crate) fn site(&self) -> Option<Site> {
        match self {
            Self::AtWarp(arrival) => Some(arrival.site),
            Self::AtBlock(arrival) => Some(arrival.site),
            Self::AtGrid(site) => Some(*site),
            Self::Runnable | Self::Returned => None,
        }
    }
}

/// The size of an asynchronous copy, in bytes.
pub(crate) const COPY_BYTES: usize = 16;

/// An asynchronous copy in flight, between two addresses.
#[derive(Clone, Copy)]
pub(crate) struct AsyncCopy {
    pub(crate) source: usize,
    pub(crate) destination: usize,
    /// The bytes of the source when the copy was started.
    pub(crate) found: [u8; COPY_BYTES],
    pub(crate) site: Site,
}

pub(crate) struct Thread {
    pub(crate) fiber: Fiber,
    pub(crate) state: State,
    pub(crate) order: Order,
    /// The result of the operation that it waited for.
    pub(crate) result: u64,
    /// The copies that it has started and not awaited.
    pub(crate) copies: Vec<AsyncCopy>,
    /// The number of copies of each commit group that it has not awaited, oldest first. The remaining copies are not committed.
    pub(crate) copy_groups: VecDeque<usize>,
    /// The number of groups that it has committed.
    pub(crate) commits: u32,
    pub(crate) trace: Vec<Event>,
}

/// The lanes of a warp, as bit masks. The masks of warp operations at which lanes wait never overlap.
#[derive(Clone, Copy, Default)]
pub(crate) struct Warp {
    /// The lanes that wait at a warp operation.
    pub(crate) waiting: u32,
    /// The lanes in the masks of these operations.
    pub(crate) expected: u32,
    pub(crate) returned: u32,
}

/// A running block of the grid.
pub(crate) struct Block {
    /// Its linear index in the grid, x fastest.
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

    /// Starts block `index` of the grid, with uninitialised shared memory. Its stacks begin at `first_stack`.
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

    /// Returns the lanes in a mask of the warp of `thread`, as (lane, index in the block).
    pub(crate) fn lanes(thread: usize, mask: u32) -> impl Iterator<Item = (usize, usize)> + Clone {
        let first = thread / WARP * WARP;
        (0..WARP)
            .filter(move |lane| mask >> lane & 1 == 1)
            .map(move |lane| (lane, first + lane))
    }
}
