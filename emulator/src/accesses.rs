//! Checks of memory accesses: bounds, alignment, initialisation and races.

use crate::block::{Block, State};
use crate::fault::{Fault, Thread};
use crate::machine::Machine;
use crate::order::{Observer, WARP};
use crate::shadow::{Access, Objection};
use crate::site::Site;
use crate::traffic::{Event, Place};

/// The size of a row of a matrix that `ldmatrix` loads.
const MATRIX_ROW_BYTES: u32 = 16;

impl Machine<'_> {
    /// Checks and counts an access that the current thread is about to make.
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

    /// Checks whether the current thread may access these bytes, and returns the memory that they are in.
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
            return Err(self.fault_here(objection, buffer, offset as u64, site));
        }
        Ok(place)
    }

    /// Checks the address of a row that the current thread passes to `ldmatrix`, and returns its offset in shared memory. The
    /// row is loaded when all lanes have arrived.
    pub(crate) fn check_matrix_row(&mut self, row: usize, site: Site) -> Result<u32, Fault> {
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

    /// Checks the loads of an `ldmatrix` of `count` matrices, at which all lanes of the current thread's warp have arrived.
    /// Each lane gets elements of every row, so each row is a load by all lanes.
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
                return Err(self.fault_of(objection, name, offset, thread, arrival.site));
            }
        }
        Ok(())
    }

    #[cold]
    pub(crate) fn fault_here(
        &self,
        objection: Objection,
        buffer: String,
        offset: u64,
        site: Site,
    ) -> Fault {
        self.fault_of(objection, buffer, offset, self.who(), site)
    }

    fn fault_of(
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
            Objection::InFlight(mark) => Fault::Copy {
                reason: format!(
                    "touches byte {offset} of '{buffer}', the destination of a copy in flight: {} has not awaited it since {}",
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
