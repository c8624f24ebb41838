//! Asynchronous copies (cp.async) of 16 bytes from global to shared memory, which complete as late as a GPU allows.
//!
//! A copy counts as a load and a store where it is started. Its bytes are read and written where its thread awaits it. While it
//! is in flight, no thread, not even that one, may access the destination or change the source.

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

    /// Commits the copies that the current thread has started since its last commit as one group.
    pub(crate) fn commit_copies(&mut self) {
        let thread = self.thread_mut();
        let grouped: usize = thread.copy_groups.iter().sum();
        thread.copy_groups.push_back(thread.copies.len() - grouped);
        thread.commits += 1;
    }

    /// Completes all copies of the current thread.
    pub(crate) fn await_copies(&mut self) -> Result<(), Fault> {
        let thread = self.thread_mut();
        thread.copy_groups.clear();
        let count = thread.copies.len();
        self.complete_oldest(count)
    }

    /// Completes the copies of all groups of the current thread except the newest `pending`.
    pub(crate) fn await_groups(&mut self, pending: usize) -> Result<(), Fault> {
        let groups = &mut self.thread_mut().copy_groups;
        let awaited = groups.len().saturating_sub(pending);
        let count = groups.drain(..awaited).sum();
        self.complete_oldest(count)
    }

    /// Completes the oldest `count` copies of the current thread.
    fn complete_oldest(&mut self, count: usize) -> Result<(), Fault> {
        let mut copies = std::mem::take(&mut self.thread_mut().copies);
        let mut awaited = copies.drain(..count);
        awaited.try_for_each(|copy| self.arrive(&copy))?;
        drop(awaited);
        // The vector is put back, so that its allocation is reused.
        self.thread_mut().copies = copies;
        Ok(())
    }

    fn arrive(&mut self, copy: &AsyncCopy) -> Result<(), Fault> {
        // Finds stores to the source since the start of the copy that are not ordered before this.
        self.touch(copy.source, BYTES as u32, Access::Load, copy.site)?;
        self.source_is_unchanged(copy)?;
        let shared = &mut self.blocks[self.current.0].shared;
        shared.shadow.arrive(shared.range(copy.destination, BYTES));
        shared.write(copy.destination, &copy.found);
        self.touch(copy.destination, BYTES as u32, Access::Store, copy.site)?;
        Ok(())
    }

    /// Refuses a source that has changed since the copy was started. A store in between is a race even if a barrier orders it
    /// before the end of the copy, or if it is this thread's own, because a GPU may read before or after it.
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
        Err(self.fault_here(Objection::Race(writer), name, offset as u64, copy.site))
    }

    /// Refuses copies that the current thread has not awaited when it returns.
    pub(crate) fn check_no_copy_in_flight(&mut self) -> Result<(), Fault> {
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
