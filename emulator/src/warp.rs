//! Warp operations, at which lanes wait for each other and must agree on the operation.

use crate::block::{Block, State, WarpArrival, WarpOperation};
use crate::fault::Fault;
use crate::machine::Machine;
use crate::order::{Order, WARP};

impl Machine<'_> {
    /// Records the arrival of the current thread at a warp operation. The last lane of the mask releases all.
    pub(crate) fn arrive_at_warp(&mut self, arrival: WarpArrival) -> Result<(), Fault> {
        let (place, thread) = self.current;
        let WarpArrival {
            operation, mask, ..
        } = arrival;
        match self.waiting_for(mask) {
            Some((_, theirs)) if agree(&theirs, &arrival) => {}
            Some((other, theirs)) => {
                let theirs = format!(
                    "{} with mask {:#010x} at {}",
                    theirs.operation, theirs.mask, theirs.site
                );
                let reason = format!(
                    "{operation} with mask {mask:#010x}, but lane {} is in {theirs}",
                    other % WARP
                );
                return self.warp_fault(thread, arrival, reason);
            }
            None => self.all_can_come(arrival)?,
        }
        let lane = thread % WARP;
        if mask >> lane & 1 == 0 {
            let reason = format!("its own lane {lane} is not in the mask {mask:#010x}");
            return self.warp_fault(thread, arrival, reason);
        }
        let warp = &mut self.blocks[place].warps[thread / WARP];
        warp.waiting |= 1 << lane;
        warp.expected |= mask;
        if warp.waiting & mask == mask {
            warp.waiting &= !mask;
            warp.expected &= !mask;
            self.release_warp(operation, mask)?;
        }
        Ok(())
    }

    /// Records that the current thread has returned. It is a fault if a lane waits for it.
    pub(crate) fn leave_warp(&mut self) -> Result<(), Fault> {
        let (place, thread) = self.current;
        let lane = thread % WARP;
        self.blocks[place].warps[thread / WARP].returned |= 1 << lane;
        match self.waiting_for(1 << lane) {
            Some((other, arrival)) => {
                self.warp_fault(other, arrival, has_returned(arrival.mask, lane))
            }
            None => Ok(()),
        }
    }

    /// Returns a thread of the current warp that waits for any of these lanes.
    fn waiting_for(&self, mask: u32) -> Option<(usize, WarpArrival)> {
        let (place, thread) = self.current;
        let block = &self.blocks[place];
        let warp = block.warps[thread / WARP];
        if warp.expected & mask == 0 {
            return None;
        }
        Block::lanes(thread, warp.waiting).find_map(|(_, other)| match block.threads[other].state {
            State::AtWarp(arrival) if arrival.mask & mask != 0 => Some((other, arrival)),
            _ => None,
        })
    }

    /// Checks, for the first lane that arrives, that the other lanes of its mask exist and have not returned.
    fn all_can_come(&self, arrival: WarpArrival) -> Result<(), Fault> {
        let (place, thread) = self.current;
        let block = &self.blocks[place];
        let mask = arrival.mask;
        if let Some((lane, _)) =
            Block::lanes(thread, mask).find(|&(_, other)| other >= block.threads.len())
        {
            let reason =
                format!("the mask {mask:#010x} names lane {lane}, which the block does not have");
            return self.warp_fault(thread, arrival, reason);
        }
        let returned = block.warps[thread / WARP].returned & mask;
        if returned != 0 {
            return self.warp_fault(
                thread,
                arrival,
                has_returned(mask, returned.trailing_zeros() as usize),
            );
        }
        Ok(())
    }

    fn release_warp(&mut self, operation: WarpOperation, mask: u32) -> Result<(), Fault> {
        let (place, thread) = self.current;
        if operation == WarpOperation::Barrier {
            let warp = &mut self.blocks[place].threads[thread / WARP * WARP..];
            let orders = warp
                .iter_mut()
                .take(WARP)
                .map(|thread| &mut thread.order)
                .enumerate();
            Order::join_lanes(orders.filter(|(lane, _)| mask >> lane & 1 == 1));
        }
        if let WarpOperation::LoadMatrices { count, .. } = operation {
            self.load_matrices(count)?;
        }
        let mut values = [0; WARP];
        let mut ballot = 0;
        let mut together = None;
        for (lane, other) in Block::lanes(thread, mask) {
            if let State::AtWarp(arrival) = self.blocks[place].threads[other].state {
                values[lane] = arrival.value;
                ballot |= u64::from(arrival.value != 0) << lane;
                together = arrival.together;
            }
        }
        if let Some(together) = together {
            // SAFETY: all 32 lanes have arrived at the same matrix operation. Each passes the address of its operands, which
            // have the type of this operation and are in the stack of a waiting thread.
            unsafe { together(values.as_ptr()) };
        }
        for (_, other) in Block::lanes(thread, mask) {
            let State::AtWarp(arrival) = self.blocks[place].threads[other].state else {
                continue;
            };
            let source = arrival.source as usize;
            let result = match operation {
                WarpOperation::Barrier
                | WarpOperation::LoadMatrices { .. }
                | WarpOperation::Multiply { .. } => 0,
                WarpOperation::Ballot => ballot,
                WarpOperation::Shuffle if source < WARP && mask >> source & 1 == 1 => {
                    values[source]
                }
                WarpOperation::Shuffle => {
                    let reason = format!(
                        "asks for the value of lane {source}, which is not in the mask {mask:#010x}"
                    );
                    return self.warp_fault(other, arrival, reason);
                }
            };
            self.resume(place, other, result);
        }
        Ok(())
    }

    fn warp_fault(&self, thread: usize, arrival: WarpArrival, reason: String) -> Result<(), Fault> {
        let thread = self.thread_at((self.current.0, thread));
        Err(Fault::Warp {
            reason,
            thread,
            site: arrival.site,
        })
    }
}

/// Returns whether two lanes are at the same operation.
fn agree(a: &WarpArrival, b: &WarpArrival) -> bool {
    (a.mask, a.operation) == (b.mask, b.operation)
        && (!a.operation.is_aligned() || a.site.same_line(b.site))
}

fn has_returned(mask: u32, lane: usize) -> String {
    format!("the mask {mask:#010x} names lane {lane}, which has returned")
}
