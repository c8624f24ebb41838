//! The functions that instrumented kernels call, by way of runtime/hooks.cpp and include/emulator.h.

use crate::block::{BlockArrival, State, Together, WarpArrival, WarpOperation};
use crate::machine::{Machine, suspend, with_machine};
use crate::order::{Observer, WARP};
use crate::shadow::Access;
use crate::site::Site;

/// Mirrors `EmulatorIndex`.
#[repr(C)]
pub(crate) struct Index {
    x: u32,
    y: u32,
    z: u32,
}

/// Returns the three-dimensional index of a linear one, x fastest.
fn unravel(linear: u32, [x, y, _]: [u32; 3]) -> Index {
    Index {
        x: linear % x,
        y: linear / x % y,
        z: linear / x / y,
    }
}

fn extent([x, y, z]: [u32; 3]) -> Index {
    Index { x, y, z }
}

#[unsafe(no_mangle)]
extern "C" fn emulator_thread_index() -> Index {
    with_machine(|machine| Ok(unravel(machine.current.1 as u32, machine.block)))
}

#[unsafe(no_mangle)]
extern "C" fn emulator_block_index() -> Index {
    with_machine(|machine| Ok(unravel(machine.who().block, machine.grid)))
}

#[unsafe(no_mangle)]
extern "C" fn emulator_block_dim() -> Index {
    with_machine(|machine| Ok(extent(machine.block)))
}

#[unsafe(no_mangle)]
extern "C" fn emulator_grid_dim() -> Index {
    with_machine(|machine| Ok(extent(machine.grid)))
}

#[unsafe(no_mangle)]
extern "C" fn emulator_lane() -> u32 {
    with_machine(|machine| Ok((machine.current.1 % WARP) as u32))
}

#[unsafe(no_mangle)]
extern "C" fn emulator_shared_memory() -> *mut u8 {
    with_machine(|machine| Ok(machine.blocks[machine.current.0].shared.start as *mut u8))
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_access(address: usize, bytes: u32, store: u32, caller: usize) {
    let access = if store != 0 {
        Access::Store
    } else {
        Access::Load
    };
    with_machine(|machine| machine.access(address, bytes, access, Site::returning_to(caller)));
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_copy(shared: usize, global: usize, caller: usize) {
    with_machine(|machine| machine.begin_copy(shared, global, Site::returning_to(caller)));
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_await_copies() {
    with_machine(Machine::await_copies);
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_commit_copies() {
    with_machine(|machine| {
        machine.commit_copies();
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_await_groups(pending: u32) {
    with_machine(|machine| machine.await_groups(pending as usize));
}

/// Lets other threads run before an atomic, because the order of atomics is where schedules differ, and because a thread may
/// spin on one.
#[unsafe(no_mangle)]
extern "C" fn emulator_on_atomic(address: usize, bytes: u32, caller: usize) {
    with_machine(|machine| {
        let current = machine.current;
        machine.ready.push(current);
        Ok(())
    });
    suspend();
    with_machine(|machine| {
        machine.access(address, bytes, Access::Atomic, Site::returning_to(caller))?;
        let (block, thread) = machine.current;
        let location = machine.atomics.entry(address).or_default();
        machine.blocks[block].threads[thread].order.atomic(location);
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_fence() {
    with_machine(|machine| {
        let (block, index) = machine.current;
        let threads_per_block = machine.threads_per_block() as u32;
        let thread = machine.blocks[block].index * threads_per_block + index as u32;
        let order = &mut machine.thread_mut().order;
        *order = Observer {
            thread,
            threads_per_block,
            order,
        }
        .fence();
        Ok(())
    });
}

/// Suspends the current thread in `state` until the scheduler resumes it, and returns the result of its operation.
fn wait(state: State, site: Site) -> u64 {
    with_machine(|machine| {
        machine.step(site)?;
        machine.thread_mut().state = state;
        Ok(())
    });
    suspend();
    with_machine(|machine| Ok(machine.thread_mut().result))
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_block_barrier(counts: u32, predicate: u32, caller: usize) -> u32 {
    let site = Site::returning_to(caller);
    wait(
        State::AtBlock(BlockArrival {
            counts: counts != 0,
            predicate: predicate != 0,
            site,
        }),
        site,
    ) as u32
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_grid_barrier(caller: usize) {
    let site = Site::returning_to(caller);
    wait(State::AtGrid(site), site);
}

fn warp(operation: WarpOperation, mask: u32, value: u64, source: u32, caller: usize) -> u64 {
    let site = Site::returning_to(caller);
    wait(
        State::AtWarp(WarpArrival {
            operation,
            mask,
            value,
            source,
            together: None,
            site,
        }),
        site,
    )
}

/// Waits for all lanes of a warp at a matrix operation. `part` holds this lane's operands and results, in its stack.
fn warp_matrix_operation(
    operation: WarpOperation,
    part: *mut u8,
    source: u32,
    together: Together,
    caller: usize,
) {
    let site = Site::returning_to(caller);
    wait(
        State::AtWarp(WarpArrival {
            operation,
            mask: u32::MAX,
            value: part as u64,
            source,
            together: Some(together),
            site,
        }),
        site,
    );
}

/// Returns the offset in shared memory of the row whose address a lane passes to `ldmatrix`.
#[unsafe(no_mangle)]
extern "C" fn emulator_on_matrix_row(row: usize, caller: usize) -> u32 {
    with_machine(|machine| machine.check_matrix_row(row, Site::returning_to(caller)))
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_ldmatrix(
    count: u32,
    transposed: u32,
    part: *mut u8,
    row: u32,
    together: Together,
    caller: usize,
) {
    let transposed = transposed != 0;
    let operation = WarpOperation::LoadMatrices { count, transposed };
    warp_matrix_operation(operation, part, row, together, caller);
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_multiply(half: u32, part: *mut u8, together: Together, caller: usize) {
    let operation = WarpOperation::Multiply { half: half != 0 };
    warp_matrix_operation(operation, part, 0, together, caller);
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_warp_barrier(mask: u32, caller: usize) {
    warp(WarpOperation::Barrier, mask, 0, 0, caller);
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_shuffle(mask: u32, value: u64, source: u32, caller: usize) -> u64 {
    warp(WarpOperation::Shuffle, mask, value, source, caller)
}

#[unsafe(no_mangle)]
extern "C" fn emulator_on_ballot(mask: u32, predicate: u32, caller: usize) -> u32 {
    warp(WarpOperation::Ballot, mask, u64::from(predicate), 0, caller) as u32
}
