//! What is known of every byte of memory: who wrote it last, and who has read it since.

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

/// Two readers are enough. Of readers that do not know of each other, the two that are kept are as
/// far apart as they come (in different blocks, else in different warps), and a writer that does
/// not know of some reader does not know of one of these; but for orders made by atomics or by
/// parts of a warp, where a race may go unseen, never one invented.
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

/// Why an access is at fault.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Objection {
    NeverWritten,
    Race(Mark),
    /// A copy to there has begun and not arrived.
    UnderWay(Mark),
}

/// The shadow of a buffer. Its cells are as coarse as the accesses so far allow, and are split when
/// a finer one comes.
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

    /// Forgets everything, as if nothing had been written.
    pub(crate) fn forget(&mut self) {
        if self.changed {
            self.cells.fill(Cell::new(Mark::NONE));
            self.changed = false;
        }
    }

    /// The launch is over: all that it did is known to what comes next.
    pub(crate) fn settle(&mut self) {
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

    /// The first byte that nobody has written.
    pub(crate) fn never_written(&self) -> Option<usize> {
        let first = self
            .cells
            .iter()
            .position(|cell| cell.written == Mark::NONE)?
            * self.cell_bytes;
        (first < self.bytes).then_some(first)
    }

    /// Returns whether somebody has written all of these bytes.
    pub(crate) fn is_written(&self, range: &Range<usize>) -> bool {
        let cells = range.start / self.cell_bytes..range.end.div_ceil(self.cell_bytes);
        self.cells[cells]
            .iter()
            .all(|cell| cell.written != Mark::NONE)
    }

    /// The host writes these bytes, between launches.
    pub(crate) fn write_by_host(&mut self, range: &Range<usize>) {
        // The last cell of a buffer may reach beyond its end.
        let whole = |byte: usize| byte.is_multiple_of(self.cell_bytes) || byte == self.bytes;
        if !(whole(range.start) && whole(range.end)) {
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
            if cell.written.is_under_way() {
                return Err(Objection::UnderWay(cell.written));
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

    /// A load of these bytes by all lanes of a warp, of which `named` stands for all where none objects.
    /// Else gives which lane does.
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
        // Two lanes, of which a writer that has not synchronised with the others of the warp is one at
        // most.
        let readers = [&lanes[named], &lanes[(named + WARP / 2) % WARP]];
        let marks = readers.map(|lane| lane.mark(site, false));
        let cells = range.start / self.cell_bytes..range.end / self.cell_bytes;
        for cell in &mut self.cells[cells] {
            let written = cell.written;
            if written.is_under_way() {
                return Err((Objection::UnderWay(written), named));
            }
            if written == Mark::NONE {
                return Err((Objection::NeverWritten, named));
            }
            // What came before a barrier is known to all.
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

    /// The last store to these bytes has begun, and not arrived: they are nobody's.
    pub(crate) fn depart(&mut self, range: Range<usize>) {
        for cell in self.within(range) {
            cell.written = cell.written.under_way();
        }
    }

    /// The bytes may be touched again.
    pub(crate) fn arrive(&mut self, range: Range<usize>) {
        for cell in self.within(range) {
            cell.written = cell.written.arrived();
        }
    }

    /// Of bytes that have been touched, so that no cell reaches beyond them.
    fn within(&mut self, range: Range<usize>) -> &mut [Cell] {
        let cells = range.start / self.cell_bytes..range.end / self.cell_bytes;
        &mut self.cells[cells]
    }

    /// Who wrote a byte last.
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

    /// A reader that the new one knows of is no longer needed: whoever knows of the new one knows
    /// of it too.
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
