//! Runs the CUDA kernels of candle-trie on the host, under checks stricter than a GPU's.
//!
//! The build script compiles `kernels/*.cu`, unchanged, with the host's C++ compiler and
//! `-fsanitize=thread`, but links functions of our own in place of the sanitizer: every load and
//! store of a kernel calls us with its address. Threads are fibers. A launch either runs to its end
//! or stops at the first [`Fault`], which names a line of the source:
//!
//! - memory outside every live buffer, or misaligned for the access;
//! - bytes read, by a kernel or by the host, that nobody has written;
//! - races: two accesses to one address, at least one a store, that no barrier, `__syncwarp`, grid
//!   synchronisation or fenced atomic orders. (Shuffles and votes order nothing: NVIDIA promises no
//!   more. A row that a lane names for `ldmatrix` is loaded by all lanes of its warp.)
//! - asynchronous copies that are read before they (or the group that they were committed to) are
//!   awaited, or never awaited: they arrive as late as they may;
//! - barriers that not all threads reach, warp operations whose lanes do not agree (of `ldmatrix`
//!   and `mma`: that are not all at the same line), launches beyond the device;
//! - results that depend on the order of the threads ([`same_for_every_schedule`]).
//!
//! A kernel source is the same for both compilers if it keeps to `kernels/device.cuh`: a head by
//! `KERNEL`, which takes one parameter struct; shared memory by `device::shared_memory()`, never
//! `__shared__` or `static`; 16 bytes at once by `Packet`; asynchronous copies, `ldmatrix` and `mma` by
//! the functions of that header; whole warps; no inline PTX, no `__constant__`, no CUB.
//!
//! A [`Report`] counts what was moved: bytes by buffer and, when traced, 32-byte sectors and bank
//! conflicts, by buffer and by line of the source.
//!
//! ```
//! use candle_trie_emulator::{Emulator, Launch, Memory, skipped};
//! # if skipped().is_some() { return Ok(()) }
//! let mut memory = Memory::new();
//! let values = memory.upload("values", &[1.0_f32; 1000]);
//! let partials = memory.allocate::<f32>("partials", 2);
//! let params = [values.address(), partials.address(), 1000, 512];
//! let launch = Launch {
//!     kernel: "block_sum",
//!     grid: [2, 1, 1],
//!     block: [64, 1, 1],
//!     shared_bytes: 128,
//!     cooperative: false,
//!     params: bytemuck::bytes_of(&params),
//! };
//! let report = Emulator::with_seed(1).run(&launch, &mut memory)?;
//! assert_eq!(memory.download(partials)?, [512.0, 488.0]);
//! assert_eq!(report.traffic("values").loaded, 4000);
//! # Ok::<(), candle_trie_emulator::Fault>(())
//! ```

mod accesses;
mod barriers;
mod block;
mod copies;
mod fault;
mod fiber;
mod hooks;
mod kernels;
mod launch;
mod machine;
mod memory;
mod order;
mod random;
mod shadow;
mod site;
mod traffic;
mod warp;

pub use fault::{Fault, Thread};
pub use launch::{Emulator, Launch, Limits, LineTraffic, Report, same_for_every_schedule};
pub use memory::{Buffer, Memory};
pub use shadow::Access;
pub use site::Site;
pub use traffic::Traffic;

/// Makes tests of functions that run kernels: where kernels are not emulated, the tests are
/// reported as ignored.
#[cfg(emulated)]
#[macro_export]
macro_rules! emulated_tests {
    ($($name:ident),* $(,)?) => { $crate::emulated_tests_with! { [] $($name),* } };
}

/// Makes tests of functions that run kernels: as kernels are not emulated here, the tests are
/// reported as ignored.
#[cfg(not(emulated))]
#[macro_export]
macro_rules! emulated_tests {
    ($($name:ident),* $(,)?) => {
        $crate::emulated_tests_with! { [#[ignore = "kernels are not emulated here: see the warnings of the build"]] $($name),* }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! emulated_tests_with {
    ([] $($name:ident),*) => { mod emulated_tests { $(#[test] fn $name() { super::$name() })* } };
    ([#$ignore:tt] $($name:ident),*) => { mod emulated_tests { $(#[test] #$ignore fn $name() { super::$name() })* } };
}

/// Why kernels are not emulated on this machine: a test that needs them says so, and is no proof of
/// anything.
pub fn skipped() -> Option<&'static str> {
    option_env!("EMULATOR_SKIPPED")
}

/// The names of the kernels that were compiled in.
pub fn kernel_names() -> Vec<&'static str> {
    kernels::Kernel::all().map(kernels::Kernel::name).collect()
}

/// The launch bounds that a kernel is compiled with: it is launched with at most so many threads a
/// block, and so many blocks of that size are sure to find registers on a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchBounds {
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a multiprocessor.
    pub blocks: u32,
}

/// The launch bounds of the kernel of this name, or `None` if no such kernel was compiled in.
pub fn launch_bounds(kernel: &str) -> Option<LaunchBounds> {
    let found = kernels::Kernel::find(kernel)?;
    Some(LaunchBounds {
        threads: found.threads,
        blocks: found.blocks,
    })
}
