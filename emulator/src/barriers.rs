//! Barriers and warp operations: who has arrived, who goes on, and who never will.

use crate::block::{Block, BlockArrival, State, WarpArrival, WarpOperation};
use crate::fault::Fault;
use crate::machine::Machine;
use crate::order::{Order, WARP};
use crate::site::Site;

impl Machine<'_> {
    /// The thread that just ran has stopped: releases whatever it was the last to arrive at.
    pub(crate) fn release_arrived(&mut self) -> Result<(), Fault> {
        let (block, thread) = self.current;
        match self.blocks[block].threads[thread].state {
            State::AtWarp(arrival) => self.arrive_at_warp(arrival),
            State::AtBlock(_) => self.arrive_at_block(),
            State::AtGrid(site) => self.arrive_at_grid(site),
            State::Runnable | State::Returned => Ok(()),
        }
    }

    fn go_on(&mut self, block: usize, thread: usize, result: u64) {
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
        let arrivals: Vec<BlockArrival> = block.threads.iter().filter_map(|thread| match thread.state {
            State::AtBlock(arrival) => Some(arrival),
            _ => None,
        })
        .collect();
        self.same_barrier(&arrivals)?;
        let count = arrivals.iter().filter(|arrival| arrival.predicate).count();
        Order::join_block(self.blocks[place].threads.iter_mut().map(|thread| &mut thread.order));
        for thread in 0..arrivals.len() {
            self.go_on(place, thread, count as u64);
        }
        Ok(())
    }

    /// A compiler may have made several barriers of one, so lines count and not addresses.
    fn same_barrier(&mut self, arrivals: &[BlockArrival]) -> Result<(), Fault> {
        let first = arrivals[0];
        for (thread, other) in arrivals.iter().enumerate() {
            let same = other.counts == first.counts
                && (other.site == first.site || other.site.lines() == first.site.lines());
            if !same {
                let reason = format!("thread {thread} waits at another: {}", other.site);
                return Err(Fault::Barrier { reason, thread: self.thread_at((self.current.0, 0)), site: first.site });
            }
        }
        Ok(())
    }

    fn arrive_at_grid(&mut self, site: Site) -> Result<(), Fault> {
        if !self.cooperative {
            let reason = "the launch is not cooperative, so other blocks may not be there".into();
            return Err(Fault::Barrier { reason, thread: self.who(), site });
        }
        self.blocks[self.current.0].at_grid += 1;
        if self.blocks.iter().any(|block| block.at_grid < block.threads.len()) {
            return Ok(());
        }
        let threads = self.blocks.iter_mut().flat_map(|block| &mut block.threads);
        Order::join_grid(threads.map(|thread| &mut thread.order));
        for block in 0..self.blocks.len() {
            self.blocks[block].at_grid = 0;
            for thread in 0..self.blocks[block].threads.len() {
                self.go_on(block, thread, 0);
            }
        }
        Ok(())
    }

    fn arrive_at_warp(&mut self, arrival: WarpArrival) -> Result<(), Fault> {
        let (place, thread) = self.current;
        let WarpArrival { operation, mask, site, .. } = arrival;
        let fault = |machine: &Self, reason: String| Err(Fault::Warp { reason, thread: machine.who(), site });
        if mask >> (thread % WARP) & 1 == 0 {
            return fault(self, format!("its own lane {} is not in the mask {mask:#010x}", thread % WARP));
        }
        // Whoever waits for this lane, or is waited for, must be in the same operation.
        for (lane, other) in Block::lanes(thread, u32::MAX) {
            let Some(State::AtWarp(theirs)) = self.blocks[place].threads.get(other).map(|thread| thread.state) else { continue };
            let together = mask >> lane & 1 == 1 || theirs.mask >> (thread % WARP) & 1 == 1;
            if together && (theirs.mask != mask || theirs.operation != operation) {
                let theirs = format!("{:?} with mask {:#010x} at {}", theirs.operation, theirs.mask, theirs.site);
                return fault(self, format!("{operation:?} with mask {mask:#010x}, but lane {lane} is in {theirs}"));
            }
        }
        let mut arrivals = [None; WARP];
        for (lane, other) in Block::lanes(thread, mask) {
            arrivals[lane] = match self.blocks[place].threads.get(other).map(|thread| thread.state) {
                None => return fault(self, format!("the mask {mask:#010x} names lane {lane}, which the block does not have")),
                Some(State::Returned) => return fault(self, format!("the mask {mask:#010x} names lane {lane}, which has returned")),
                Some(State::AtWarp(theirs)) => Some(theirs),
                Some(_) => return Ok(()),
            };
        }
        self.release_warp(operation, mask, &arrivals)
    }

    fn release_warp(&mut self, operation: WarpOperation, mask: u32, arrivals: &[Option<WarpArrival>; WARP]) -> Result<(), Fault> {
        let (place, thread) = self.current;
        let lanes = Block::lanes(thread, mask);
        let ballot = arrivals.iter().enumerate().filter(|(_, arrival)| arrival.is_some_and(|arrival| arrival.value != 0));
        let ballot: u64 = ballot.map(|(lane, _)| 1 << lane).sum();
        if operation == WarpOperation::Barrier {
            let first = thread / WARP * WARP;
            let warp = self.blocks[place].threads[first..].iter_mut().take(WARP).enumerate();
            Order::join_lanes(warp.filter(|(lane, _)| mask >> lane & 1 == 1).map(|(lane, thread)| (lane, &mut thread.order)));
        }
        for (lane, other) in lanes {
            let Some(arrival) = arrivals[lane] else { continue };
            let result = match operation {
                WarpOperation::Barrier => 0,
                WarpOperation::Ballot => ballot,
                WarpOperation::Shuffle => match arrivals.get(arrival.source as usize) {
                    Some(Some(source)) => source.value,
                    _ => {
                        let reason = format!("asks for the value of lane {}, which is not in the mask {mask:#010x}", arrival.source);
                        return Err(Fault::Warp { reason, thread: self.thread_at((place, other)), site: arrival.site });
                    }
                },
            };
            self.go_on(place, other, result);
        }
        Ok(())
    }

    /// Nothing can run any more: a fault, unless that is because all is done.
    pub(crate) fn all_returned(&self) -> Result<(), Fault> {
        let states = || self.blocks.iter().enumerate().flat_map(|(block, alive)| {
            alive.threads.iter().enumerate().map(move |(thread, one)| ((block, thread), one.state))
        });
        // The barrier of a block first: a lane that is missing elsewhere often waits there.
        let waits_for_block = |state: &State| matches!(state, State::AtBlock(_));
        let waiting = states().find(|(_, state)| waits_for_block(state)).or_else(|| states().find(|(_, state)| state.site().is_some()));
        let Some((place, state)) = waiting else { return Ok(()) };
        let site = state.site().unwrap_or(Site::HOST);
        let missing = states().find(|(other, state)| {
            (other.0 == place.0 || matches!(self.blocks[place.0].threads[place.1].state, State::AtGrid(_)))
                && state.site().is_none_or(|theirs| theirs != site && theirs.lines() != site.lines())
        });
        let reason = match missing {
            Some((other, State::Returned)) => format!("{} has returned", self.thread_at(other)),
            Some((other, state)) => format!("{} waits at {}", self.thread_at(other), state.site().unwrap_or(Site::HOST)),
            None => "it waits for threads that never come".into(),
        };
        Err(Fault::Barrier { reason, thread: self.thread_at(place), site })
    }
}
