//! Asynchronous copies of sixteen bytes from global to shared memory, made as late as a GPU may.
//!
//! A copy counts as a load and a store where it begins. Its bytes are read and written where its
//! thread awaits it. Until then nobody may touch the destination, that thread neither, nor change
//! the source.

use crate::block::{AsyncCopy, COPY_BYTES as BYTES};
use crate::fault::Fault;
use crate::machine::Machine;
use crate::shadow::{Access, Objection};
use crate::site::Site;

impl Machine<'_> {
    pub(crate) fn begin_copy(
        &mut self,
        destination: usize,
        source: usize,
        site: Site,
    ) -> Result<(), Fault> {
        self.access(source, BYTES as u32, Access::Load, site)?;
        self.access(destination, BYTES as u32, Access::Store, site)?;
        let Some(buffer) = self.memory.find(source) else {
            return self.copy_fault(site, "copies from what is not global memory");
        };
        let (block, thread) = self.current;
        let block = &mut self.blocks[block];
        if !block.shared.contains(destination) {
            return self.copy_fault(site, "copies to what is not shared memory");
        }
        block
            .shared
            .shadow
            .depart(block.shared.range(destination, BYTES));
        block.threads[thread].copies.push(AsyncCopy {
            source,
            destination,
            found: self.memory.region(buffer).read(source),
            site,
        });
        Ok(())
    }

    /// The copies that the current thread has begun since the last group become one.
    pub(crate) fn commit_copies(&mut self) {
        let thread = self.thread_mut();
        let grouped: usize = thread.copy_groups.iter().sum();
        thread.copy_groups.push_back(thread.copies.len() - grouped);
        thread.commits += 1;
    }

    /// Makes all copies of the current thread arrive.
    pub(crate) fn await_copies(&mut self) -> Result<(), Fault> {
        let thread = self.thread_mut();
        thread.copy_groups.clear();
        let count = thread.copies.len();
        self.oldest_arrive(count)
    }

    /// The copies of all groups of the current thread arrive, but those of the newest `pending`.
    pub(crate) fn await_groups(&mut self, pending: usize) -> Result<(), Fault> {
        let groups = &mut self.thread_mut().copy_groups;
        let awaited = groups.len().saturating_sub(pending);
        let count = groups.drain(..awaited).sum();
        self.oldest_arrive(count)
    }

    /// Loads and stores the bytes of the current thread's oldest copies.
    fn oldest_arrive(&mut self, count: usize) -> Result<(), Fault> {
        let mut copies = std::mem::take(&mut self.thread_mut().copies);
        let mut awaited = copies.drain(..count);
        awaited.try_for_each(|copy| self.arrive(&copy))?;
        drop(awaited);
        // Its room is for the next ones.
        self.thread_mut().copies = copies;
        Ok(())
    }

    fn arrive(&mut self, copy: &AsyncCopy) -> Result<(), Fault> {
        // Stores to the source may have come since, which nothing orders before this.
        self.touch(copy.source, BYTES as u32, Access::Load, copy.site)?;
        self.source_is_unchanged(copy)?;
        let shared = &mut self.blocks[self.current.0].shared;
        shared.shadow.arrive(shared.range(copy.destination, BYTES));
        shared.write(copy.destination, &copy.found);
        self.touch(copy.destination, BYTES as u32, Access::Store, copy.site)?;
        Ok(())
    }

    /// Stores that a barrier orders before the arrival, or this thread's own, came too early all
    /// the same: a GPU may read before or after them. One that changes nothing does no harm.
    fn source_is_unchanged(&mut self, copy: &AsyncCopy) -> Result<(), Fault> {
        let Some(buffer) = self.memory.find(copy.source) else {
            return Ok(());
        };
        let global = self.memory.region(buffer);
        let now: [u8; BYTES] = global.read(copy.source);
        let Some(changed) = now.iter().zip(&copy.found).position(|(a, b)| a != b) else {
            return Ok(());
        };
        let offset = copy.source - global.start + changed;
        let (name, writer) = (global.name.clone(), global.shadow.writer(offset));
        Err(self.object(Objection::Race(writer), name, offset as u64, copy.site))
    }

    /// The current thread has come to its end.
    pub(crate) fn no_copy_under_way(&mut self) -> Result<(), Fault> {
        match self.thread_mut().copies.first() {
            Some(&AsyncCopy { site, .. }) => {
                self.copy_fault(site, "returns without having awaited this copy")
            }
            None => Ok(()),
        }
    }

    fn copy_fault(&self, site: Site, reason: &str) -> Result<(), Fault> {
        Err(Fault::Copy {
            reason: reason.into(),
            thread: self.who(),
            site,
        })
    }
}
