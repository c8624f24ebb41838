//! Barriers and warp operations: who has arrived, who goes on, and who never will.

use crate::block::{Block, BlockArrival, State, Warp, WarpArrival, WarpOperation};
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
            State::Returned => self.leave_warp(),
            State::Runnable => Ok(()),
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
                self.go_on(block, thread, 0);
            }
        }
        Ok(())
    }

    fn arrive_at_warp(&mut self, arrival: WarpArrival) -> Result<(), Fault> {
        let (place, thread) = self.current;
        let (mask, mine) = (arrival.mask, 1 << (thread % WARP));
        let block = &self.blocks[place];
        let warp = block.warps[thread / WARP];
        if mask & mine == 0 {
            return self.warp_fault(
                arrival,
                format!(
                    "its own lane {} is not in the mask {mask:#010x}",
                    thread % WARP
                ),
            );
        }
        let together = warp.waiting & mask;
        if together != 0 {
            let other = thread / WARP * WARP + together.trailing_zeros() as usize;
            if let State::AtWarp(theirs) = block.threads[other].state
                && (theirs.mask, theirs.operation) != (mask, arrival.operation)
            {
                return self.disagreement(arrival, other, theirs);
            }
        } else {
            self.begin_warp_operation(arrival, warp)?;
        }
        let warp = &mut self.blocks[place].warps[thread / WARP];
        warp.waiting |= mine;
        warp.expected |= mask;
        if warp.waiting & mask == mask {
            warp.waiting &= !mask;
            warp.expected &= !mask;
            self.release_warp(arrival.operation, mask)?;
        }
        Ok(())
    }

    /// The first lane to arrive: can the others of its mask follow?
    fn begin_warp_operation(&self, arrival: WarpArrival, warp: Warp) -> Result<(), Fault> {
        let (place, thread) = self.current;
        let threads = &self.blocks[place].threads;
        let mask = arrival.mask;
        if let Some((lane, _)) =
            Block::lanes(thread, mask).find(|(_, other)| *other >= threads.len())
        {
            return self.warp_fault(
                arrival,
                format!("the mask {mask:#010x} names lane {lane}, which the block does not have"),
            );
        }
        if warp.returned & mask != 0 {
            let lane = (warp.returned & mask).trailing_zeros();
            return self.warp_fault(
                arrival,
                format!("the mask {mask:#010x} names lane {lane}, which has returned"),
            );
        }
        let waiting =
            Block::lanes(thread, warp.waiting).find_map(|(_, other)| match threads[other].state {
                State::AtWarp(theirs) if theirs.mask & mask != 0 => Some((other, theirs)),
                _ => None,
            });
        match waiting {
            Some((other, theirs)) => self.disagreement(arrival, other, theirs),
            None => Ok(()),
        }
    }

    fn disagreement(
        &self,
        arrival: WarpArrival,
        other: usize,
        theirs: WarpArrival,
    ) -> Result<(), Fault> {
        let WarpArrival {
            operation, mask, ..
        } = arrival;
        let theirs = format!(
            "{:?} with mask {:#010x} at {}",
            theirs.operation, theirs.mask, theirs.site
        );
        self.warp_fault(
            arrival,
            format!(
                "{operation:?} with mask {mask:#010x}, but lane {} is in {theirs}",
                other % WARP
            ),
        )
    }

    fn warp_fault(&self, arrival: WarpArrival, reason: String) -> Result<(), Fault> {
        Err(Fault::Warp {
            reason,
            thread: self.who(),
            site: arrival.site,
        })
    }

    fn leave_warp(&mut self) -> Result<(), Fault> {
        let (place, thread) = self.current;
        let mine = 1 << (thread % WARP);
        let warp = &mut self.blocks[place].warps[thread / WARP];
        warp.returned |= mine;
        if warp.expected & mine == 0 {
            return Ok(());
        }
        let waiting = warp.waiting;
        let threads = &self.blocks[place].threads;
        let waiting =
            Block::lanes(thread, waiting).find_map(|(_, other)| match threads[other].state {
                State::AtWarp(arrival) if arrival.mask & mine != 0 => Some((other, arrival)),
                _ => None,
            });
        let Some((other, arrival)) = waiting else {
            return Ok(());
        };
        let reason = format!(
            "the mask {:#010x} names lane {}, which has returned",
            arrival.mask,
            thread % WARP
        );
        Err(Fault::Warp {
            reason,
            thread: self.thread_at((place, other)),
            site: arrival.site,
        })
    }

    fn release_warp(&mut self, operation: WarpOperation, mask: u32) -> Result<(), Fault> {
        let (place, thread) = self.current;
        let first = thread / WARP * WARP;
        let warp = &mut self.blocks[place].threads[first..];
        if operation == WarpOperation::Barrier {
            let orders = warp
                .iter_mut()
                .take(WARP)
                .map(|thread| &mut thread.order)
                .enumerate();
            Order::join_lanes(orders.filter(|(lane, _)| mask >> lane & 1 == 1));
        }
        let mut values = [0; WARP];
        for (lane, thread) in warp.iter().take(WARP).enumerate() {
            if let State::AtWarp(arrival) = thread.state {
                values[lane] = arrival.value;
            }
        }
        let ballot = Block::lanes(thread, mask).fold(0, |bits, (lane, _)| {
            bits | u64::from(values[lane] != 0) << lane
        });
        for (_, other) in Block::lanes(thread, mask) {
            let State::AtWarp(arrival) = self.blocks[place].threads[other].state else {
                continue;
            };
            let source = arrival.source as usize;
            if operation == WarpOperation::Shuffle && (source >= WARP || mask >> source & 1 == 0) {
                let reason = format!(
                    "asks for the value of lane {source}, which is not in the mask {mask:#010x}"
                );
                return Err(Fault::Warp {
                    reason,
                    thread: self.thread_at((place, other)),
                    site: arrival.site,
                });
            }
            let result = match operation {
                WarpOperation::Barrier => 0,
                WarpOperation::Ballot => ballot,
                WarpOperation::Shuffle => values[source],
            };
            self.go_on(place, other, result);
        }
        Ok(())
    }

    /// Nothing can run any more: a fault, unless that is because all is done.
    pub(crate) fn all_returned(&self) -> Result<(), Fault> {
        let states = || {
            self.blocks.iter().enumerate().flat_map(|(block, alive)| {
                alive
                    .threads
                    .iter()
                    .enumerate()
                    .map(move |(thread, one)| ((block, thread), one.state))
            })
        };
        // The barrier of a block first: a lane that is missing elsewhere often waits there.
        let waits_for_block = |state: &State| matches!(state, State::AtBlock(_));
        let waiting = states()
            .find(|(_, state)| waits_for_block(state))
            .or_else(|| states().find(|(_, state)| state.site().is_some()));
        let Some((place, state)) = waiting else {
            return Ok(());
        };
        let site = state.site().unwrap_or(Site::HOST);
        let missing = states().find(|(other, state)| {
            (other.0 == place.0
                || matches!(
                    self.blocks[place.0].threads[place.1].state,
                    State::AtGrid(_)
                ))
                && state
                    .site()
                    .is_none_or(|theirs| theirs != site && theirs.lines() != site.lines())
        });
        let reason = match missing {
            Some((other, State::Returned)) => format!("{} has returned", self.thread_at(other)),
            Some((other, state)) => format!(
                "{} waits at {}",
                self.thread_at(other),
                state.site().unwrap_or(Site::HOST)
            ),
            None => "it waits for threads that never come".into(),
        };
        Err(Fault::Barrier {
            reason,
            thread: self.thread_at(place),
            site,
        })
    }
}
