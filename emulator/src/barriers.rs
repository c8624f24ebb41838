//! Barriers of blocks and of the grid, and the detection of threads that never arrive.

use crate::block::{Block, BlockArrival, State};
use crate::fault::Fault;
use crate::machine::Machine;
use crate::order::Order;
use crate::site::Site;

impl Machine<'_> {
    /// Releases the threads for which the current thread, which has just stopped, was the last to arrive.
    pub(crate) fn release_arrived(&mut self) -> Result<(), Fault> {
        let (block, thread) = self.current;
        match self.blocks[block].threads[thread].state {
            State::AtWarp(arrival) => self.arrive_at_warp(arrival),
            State::AtBlock(_) => self.arrive_at_block(),
            State::AtGrid(site) => self.arrive_at_grid(site),
            State::Returned => self.leave_warp(),
            State::Runnable => Ok(()),
        }
    }

    /// Makes a thread runnable again, with the result of the operation that it waited for.
    pub(crate) fn resume(&mut self, block: usize, thread: usize, result: u64) {
        let one = &mut self.blocks[block].threads[thread];
        one.state = State::Runnable;
        one.result = result;
        self.ready.push((block, thread));
    }

    fn arrive_at_block(&mut self) -> Result<(), Fault> {
        let place = self.current.0;
        let block = &mut self.blocks[place];
        block.at_barrier += 1;
        if block.at_barrier < block.threads.len() {
            return Ok(());
        }
        block.at_barrier = 0;
        let arrivals: Vec<BlockArrival> = block
            .threads
            .iter()
            .filter_map(|thread| match thread.state {
                State::AtBlock(arrival) => Some(arrival),
                _ => None,
            })
            .collect();
        self.same_barrier(&arrivals)?;
        let count = arrivals.iter().filter(|arrival| arrival.predicate).count();
        Order::join_block(
            self.blocks[place]
                .threads
                .iter_mut()
                .map(|thread| &mut thread.order),
        );
        for thread in 0..arrivals.len() {
            self.resume(place, thread, count as u64);
        }
        Ok(())
    }

    /// Refuses arrivals at different barriers. Lines are compared and not addresses, because a compiler may duplicate a
    /// barrier.
    fn same_barrier(&mut self, arrivals: &[BlockArrival]) -> Result<(), Fault> {
        let first = arrivals[0];
        for (thread, other) in arrivals.iter().enumerate() {
            let same = other.counts == first.counts && other.site.same_line(first.site);
            if !same {
                let reason = format!("thread {thread} waits at another: {}", other.site);
                return Err(Fault::Barrier {
                    reason,
                    thread: self.thread_at((self.current.0, 0)),
                    site: first.site,
                });
            }
        }
        Ok(())
    }

    fn arrive_at_grid(&mut self, site: Site) -> Result<(), Fault> {
        if !self.cooperative {
            let reason = "the launch is not cooperative, so other blocks may not be there".into();
            return Err(Fault::Barrier {
                reason,
                thread: self.who(),
                site,
            });
        }
        self.blocks[self.current.0].at_grid += 1;
        if self
            .blocks
            .iter()
            .any(|block| block.at_grid < block.threads.len())
        {
            return Ok(());
        }
        let threads = self.blocks.iter_mut().flat_map(|block| &mut block.threads);
        Order::join_grid(threads.map(|thread| &mut thread.order));
        for block in 0..self.blocks.len() {
            self.blocks[block].at_grid = 0;
            for thread in 0..self.blocks[block].threads.len() {
                self.resume(block, thread, 0);
            }
        }
        Ok(())
    }

    /// Checks, when no thread is runnable, that all threads have returned. Otherwise they are deadlocked, which is a fault.
    pub(crate) fn all_returned(&self) -> Result<(), Fault> {
        let of_block = |(place, block): (usize, &Block)| -> Vec<_> {
            let threads = block.threads.iter().enumerate();
            threads
                .map(|(thread, one)| ((place, thread), one.state))
                .collect()
        };
        let states: Vec<_> = self.blocks.iter().enumerate().flat_map(of_block).collect();
        // Threads at a barrier of their block are reported first: a lane that is missing elsewhere often waits there.
        let at_block = states
            .iter()
            .find(|(_, state)| matches!(state, State::AtBlock(_)));
        let waiting = at_block.or_else(|| states.iter().find(|(_, state)| state.site().is_some()));
        let Some(&(place, state)) = waiting else {
            return Ok(());
        };
        let site = state.site().unwrap_or(Site::HOST);

        let concerns = |other: usize| other == place.0 || matches!(state, State::AtGrid(_));
        let elsewhere = |theirs: Site| !theirs.same_line(site);
        let missing = states
            .iter()
            .find(|(other, state)| concerns(other.0) && state.site().is_none_or(elsewhere));
        let reason = match missing.map(|(other, state)| (self.thread_at(*other), state.site())) {
            Some((other, None)) => format!("{other} has returned"),
            Some((other, Some(theirs))) => format!("{other} waits at {theirs}"),
            None => "it waits for threads that never come".into(),
        };
        Err(Fault::Barrier {
            reason,
            thread: self.thread_at(place),
            site,
        })
    }
}
