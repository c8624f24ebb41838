//! Runs launch plans in the emulator.
#![allow(dead_code)] // Each test binary uses its part.

use bytemuck::Pod;
use candle_trie::launch::{DeviceLimits, Launch};
use candle_trie_emulator::{Emulator, Fault, Memory, Report};

/// The smallest device that the kernels are for, with few multiprocessors, as each thread of a
/// resident block is a stack.
pub const LIMITS: DeviceLimits = DeviceLimits {
    multiprocessors: 4,
    shared_bytes_per_block: 99 << 10,
    shared_bytes_per_multiprocessor: 100 << 10,
};

/// Orders of the threads that every kernel is run in.
pub const SEEDS: std::ops::Range<u64> = 0..4;

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
