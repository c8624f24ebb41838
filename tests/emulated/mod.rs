//! Launch plans without a device: run in the emulator, or recorded.
#![allow(dead_code, unused_imports)] // Each test binary uses its part.

mod recorder;
mod stream;

use candle_trie::TokenSets;
use candle_trie::launch::{DeviceLimits, DevicePtr, TokenSetsView};
use candle_trie_emulator::{Buffer, Memory};

pub use recorder::{Issued, Recorder, Table};
pub use stream::{EmulatedStream, Failure};

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

/// Returns where a buffer is, as plans take it.
pub fn pointer<T>(buffer: Buffer<T>) -> DevicePtr {
    DevicePtr::new(buffer.address()).expect("no buffer lies at 0")
}

/// Uploads token sets.
pub fn upload_sets(memory: &mut Memory, sets: &TokenSets) -> TokenSetsView {
    let mut upload = |name, words: &[u32]| Some(pointer(memory.upload(name, words)));
    let (offsets, tokens) = match sets.as_raw() {
        Some((offsets, tokens)) => (upload("offsets", offsets), upload("tokens", tokens)),
        None => (None, None),
    };
    TokenSetsView {
        offsets,
        tokens,
        vocabulary: u64::from(sets.max_token()) + 1,
    }
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
