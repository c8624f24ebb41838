//! Runs launch plans in the emulator.
#![allow(dead_code)] // Each test binary uses its part.

use bytemuck::Pod;
use candle_trie::launch::{DeviceLimits, DevicePtr, Launch};
use candle_trie_emulator::{Buffer, Emulator, Fault, Limits, Memory, Report, launch_bounds};

/// The smallest device that the kernels are for, with few multiprocessors, as each thread of a
/// resident block is a stack.
pub const LIMITS: DeviceLimits = DeviceLimits {
    multiprocessors: 4,
    shared_bytes_per_block: 99 << 10,
    shared_bytes_per_multiprocessor: 100 << 10,
};

/// Whether every case of the largest sweeps is run, in every order of the threads: where `CANDLE_TRIE_SWEEPS` is `full`, as in `.ci/run`.
pub fn sweeps_in_full() -> bool {
    match std::env::var("CANDLE_TRIE_SWEEPS") {
        Err(_) => false,
        Ok(value) if value == "full" => true,
        Ok(value) => panic!("CANDLE_TRIE_SWEEPS is {value}, which is not full"),
    }
}

/// The orders of the threads that every kernel is run in.
pub fn schedules() -> std::ops::Range<u64> {
    0..if sweeps_in_full() { 4 } else { 2 }
}

/// Where a buffer is, as plans take it.
pub fn pointer<T>(buffer: Buffer<T>) -> Option<DevicePtr> {
    DevicePtr::new(buffer.address())
}

pub fn run<P: Pod>(
    emulator: &Emulator,
    launch: &Launch<P>,
    memory: &mut Memory,
) -> Result<Report, Fault> {
    let launch = candle_trie_emulator::Launch {
        kernel: launch.kernel,
        grid: launch.grid,
        block: launch.block,
        shared_bytes: launch.shared_bytes,
        cooperative: launch.cooperative,
        params: bytemuck::bytes_of(&launch.params),
    };
    emulator.run(&launch, memory)
}

/// How many blocks of a launch a device holds together, as its driver would say: as many as find
/// registers, which the kernel's launch bounds promise, and shared memory, of which each block costs
/// 1 KiB more than it asks for, in units of 128 bytes.
pub fn resident_blocks<P>(device: &DeviceLimits, launch: &Launch<P>) -> u32 {
    let threads: u32 = launch.block.iter().product();
    let by_registers =
        launch_bounds(launch.kernel).map_or(0, |bounds| bounds.threads * bounds.blocks / threads);
    let held = launch.shared_bytes.next_multiple_of(128) + (1 << 10);
    let by_shared_memory = device.shared_bytes_per_multiprocessor / held;
    device.multiprocessors * by_registers.min(by_shared_memory)
}

/// Runs a launch on a device with these limits.
pub fn run_on<P: Pod>(
    device: &DeviceLimits,
    emulator: &Emulator,
    launch: &Launch<P>,
    memory: &mut Memory,
) -> Result<Report, Fault> {
    let limits = Limits {
        shared_bytes: device.shared_bytes_per_block,
        resident_blocks: resident_blocks(device, launch),
    };
    run(
        &Emulator {
            limits,
            ..*emulator
        },
        launch,
        memory,
    )
}

/// Numbers that look random and are the same every time, in (−1, 1).
pub fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
