//! Shadow memory, which records for every byte of memory its last store and the loads since.

use std::ops::Range;

use crate::order::{Mark, Observer, WARP};
use crate::site::Site;

/// A kind of access to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Load,
    /// A store.
    Store,
    /// An atomic read-modify-write.
    Atomic,
}

/// The last store to some bytes, and two of the loads since. Two are enough: of loads that are not ordered with each other, the
/// two most distant ones are kept (in different blocks, or else in different warps), and a store that races with any load races
/// with one of these. The exceptions are orders by atomics or by a part of a warp, where a race may go undetected. A race is
/// never reported wrongly.
#[derive(Clone, Copy)]
struct Cell {
    written: Mark,
    read: [Mark; 2],
}

impl Cell {
    const fn new(written: Mark) -> Self {
        Self {
            written,
            read: [Mark::NONE; 2],
        }
    }
}

/// The reason why an access is a fault.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Objection {
    NeverWritten,
    Race(Mark),
    /// The bytes are the destination of an asynchronous copy in flight.
    InFlight(Mark),
}

/// The shadow of a buffer. Its cells are as coarse as the accesses so far allow, and are split at the first finer access.
pub(crate) struct Shadow {
    bytes: usize,
    cell_bytes: usize,
    cells: Vec<Cell>,
    changed: bool,
}

const COARSEST: usize = 16;

impl Shadow {
    pub(crate) fn new(bytes: usize, written: bool) -> Self {
        let cell = Cell::new(if written { Mark::HOST } else { Mark::NONE });
        Self {
            bytes,
            cell_bytes: COARSEST,
            cells: vec![cell; bytes.div_ceil(COARSEST)],
            changed: false,
        }
    }

    /// Makes all bytes uninitialised.
    pub(crate) fn forget(&mut self) {
        if self.changed {
            self.cells.fill(Cell::new(Mark::NONE));
            self.changed = false;
        }
    }

    /// Ends a launch: all its accesses happen before whatever comes next.
    pub(crate) fn end_launch(&mut self) {
        if self.changed {
            for cell in &mut self.cells {
                *cell = Cell::new(if cell.written == Mark::NONE {
                    Mark::NONE
                } else {
                    Mark::HOST
                });
            }
            self.changed = false;
        }
    }

    /// Returns the first uninitialised byte.
    pub(crate) fn never_written(&self) -> Option<usize> {
        let first = self
            .cells
            .iter()
            .position(|cell| cell.written == Mark::NONE)?
            * self.cell_bytes;
        (first < self.bytes).then_some(first)
    }

    /// Returns whether all of these bytes are initialised.
    pub(crate) fn is_written(&self, range: &Range<usize>) -> bool {
        let cells = range.start / self.cell_bytes..range.end.div_ceil(self.cell_bytes);
        self.cells[cells]
            .iter()
            .all(|cell| cell.written != Mark::NONE)
    }

    /// Records a store of the host, between launches.
    pub(crate) fn write_by_host(&mut self, range: &Range<usize>) {
        // The last cell of a buffer may extend beyond its end.
        let on_cell_boundary =
            |byte: usize| byte.is_multiple_of(self.cell_bytes) || byte == self.bytes;
        if !(on_cell_boundary(range.start) && on_cell_boundary(range.end)) {
            self.split(range);
        }
        let cells = range.start / self.cell_bytes..range.end.div_ceil(self.cell_bytes);
        self.cells[cells].fill(Cell::new(Mark::HOST));
    }

    #[inline]
    pub(crate) fn touch(
        &mut self,
        range: Range<usize>,
        access: Access,
        site: Site,
        me: &Observer<'_>,
    ) -> Result<(), Objection> {
        if (range.start | range.end) & (self.cell_bytes - 1) != 0 {
            self.split(&range);
        }
        self.changed = true;
        let mark = me.mark(site, access == Access::Atomic);
        let cells = range.start / self.cell_bytes..range.end / self.cell_bytes;
        for cell in &mut self.cells[cells] {
            if cell.written.is_in_flight() {
                return Err(Objection::InFlight(cell.written));
            }
            match access {
                Access::Load => cell.load(mark, me)?,
                Access::Store => cell.store(mark, me)?,
                Access::Atomic if cell.written == Mark::NONE => {
                    return Err(Objection::NeverWritten);
                }
                Access::Atomic => cell.store(mark, me)?,
            }
        }
        Ok(())
    }

    /// Records a load of these bytes by all lanes of a warp, where lane `named` passed the address. An error has the lane at
    /// fault.
    #[inline]
    pub(crate) fn load_together(
        &mut self,
        range: Range<usize>,
        site: Site,
        lanes: &[Observer<'_>; WARP],
        named: usize,
    ) -> Result<(), (Objection, usize)> {
        if (range.start | range.end) & (self.cell_bytes - 1) != 0 {
            self.split(&range);
        }
        self.changed = true;
        // Two lanes are recorded as readers. A later store by one lane without a synchronisation of the warp then races with
        // the other.
        let readers = [&lanes[named], &lanes[(named + WARP / 2) % WARP]];
        let marks = readers.map(|lane| lane.mark(site, false));
        let cells = range.start / self.cell_bytes..range.end / self.cell_bytes;
        for cell in &mut self.cells[cells] {
            let written = cell.written;
            if written.is_in_flight() {
                return Err((Objection::InFlight(written), named));
            }
            if written == Mark::NONE {
                return Err((Objection::NeverWritten, named));
            }
            // If the store came before the last barrier of the block, all lanes know it.
            if !readers[0].knows_by_barrier(written)
                && let Some(other) = lanes.iter().position(|lane| !lane.knows(written))
            {
                return Err((Objection::Race(written), other));
            }
            for (mark, lane) in marks.iter().zip(readers) {
                cell.add_reader(*mark, lane);
            }
        }
        Ok(())
    }

    /// Marks these bytes as the destination of a copy in flight.
    pub(crate) fn depart(&mut self, range: Range<usize>) {
        for cell in self.within(range) {
            cell.written = cell.written.in_flight();
        }
    }

    /// Marks the copy to these bytes as complete.
    pub(crate) fn arrive(&mut self, range: Range<usize>) {
        for cell in self.within(range) {
            cell.written = cell.written.arrived();
        }
    }

    /// Returns the cells of bytes that have been accessed before, so that no cell extends beyond them.
    fn within(&mut self, range: Range<usize>) -> &mut [Cell] {
        let cells = range.start / self.cell_bytes..range.end / self.cell_bytes;
        &mut self.cells[cells]
    }

    /// Returns the last store to a byte.
    pub(crate) fn writer(&self, byte: usize) -> Mark {
        self.cells[byte / self.cell_bytes].written
    }

    #[cold]
    fn split(&mut self, range: &Range<usize>) {
        let finer = 1 << (range.start | range.end).trailing_zeros();
        let parts = self.cell_bytes / finer;
        let split = self
            .cells
            .iter()
            .flat_map(|&cell| std::iter::repeat_n(cell, parts));
        self.cells = split.take(self.bytes.div_ceil(finer)).collect();
        self.cell_bytes = finer;
    }
}

impl Cell {
    #[inline]
    fn load(&mut self, mark: Mark, me: &Observer<'_>) -> Result<(), Objection> {
        if self.written == Mark::NONE {
            return Err(Objection::NeverWritten);
        }
        if !me.knows(self.written) {
            return Err(Objection::Race(self.written));
        }
        self.add_reader(mark, me);
        Ok(())
    }

    #[inline]
    fn store(&mut self, mark: Mark, me: &Observer<'_>) -> Result<(), Objection> {
        for earlier in [self.written, self.read[0], self.read[1]] {
            let both_atomic = mark.is_atomic() && earlier.is_atomic();
            if !both_atomic && !me.knows(earlier) {
                return Err(Objection::Race(earlier));
            }
        }
        *self = Self::new(mark);
        Ok(())
    }

    /// Records a load. An earlier load that this one knows is dropped: whatever is ordered after this one is ordered after
    /// both.
    #[inline]
    fn add_reader(&mut self, mark: Mark, me: &Observer<'_>) {
        let [first, second] = self.read;
        if me.knows(first) {
            self.read = if me.knows(second) {
                [mark, Mark::NONE]
            } else {
                [mark, second]
            };
        } else if me.knows(second)
            || me.distance(first.thread, mark.thread) > me.distance(first.thread, second.thread)
        {
            self.read[1] = mark;
        }
    }
}
