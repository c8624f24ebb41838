//! Runs the CUDA kernels of candle-trie on the host, under checks stricter than a GPU's.
//!
//! The build script compiles `kernels/*.cu`, unchanged, with the host's C++ compiler and
//! `-fsanitize=thread`, but links functions of our own in place of the sanitizer: every load and
//! store of a kernel calls us with its address. Threads are fibers. A launch either runs to its end
//! or stops at the first [`Fault`], which names a line of the source:
//!
//! - accesses outside every live buffer, or that are misaligned;
//! - reads of uninitialised bytes, by a kernel or by the host;
//! - races: two accesses to one address, at least one of them a store, that no barrier, `__syncwarp`, grid synchronisation or fenced
//!   atomic orders (as NVIDIA documents, shuffles and votes do not order memory; a row of `ldmatrix` counts as a load by all lanes of
//!   the warp);
//! - asynchronous copies whose destination is read before they (or their commit group) are awaited, or that are never awaited: copies
//!   complete as late as a GPU allows;
//! - barriers that not all threads reach, warp operations whose lanes do not agree (for `ldmatrix` and `mma`, lanes that are not all at
//!   the same line), and launches that exceed the limits of the device;
//! - results that depend on the order of the threads ([`same_for_every_schedule`]).
//!
//! A kernel source compiles with both compilers if it follows these rules of `kernels/device.cuh`. A kernel is defined by
//! `KERNEL` and takes one parameter struct. Shared memory comes from `device::shared_memory()`, never from `__shared__` or
//! `static`. Accesses of 16 bytes use `Packet`. Asynchronous copies, `ldmatrix` and `mma` use the functions of that header.
//! Blocks have full warps. There is no inline PTX, no `__constant__` and no CUB.
//!
//! A [`Report`] counts the bytes moved by buffer and, when traced, 32-byte sectors and bank conflicts, by buffer and by line of
//! the source.
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

/// Makes tests of functions that run kernels. On a machine where kernels are not emulated, the tests are reported as ignored.
#[cfg(emulated)]
#[macro_export]
macro_rules! emulated_tests {
    ($($name:ident),* $(,)?) => { $crate::emulated_tests_with! { [] $($name),* } };
}

/// Makes tests of functions that run kernels. As kernels are not emulated on this machine, the tests are reported as ignored.
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

/// Returns the reason why kernels are not emulated on this machine, and `None` if they are. A test that needs them prints it,
/// and proves nothing.
pub fn skipped() -> Option<&'static str> {
    option_env!("EMULATOR_SKIPPED")
}

/// Returns the names of the kernels that are compiled in.
pub fn kernel_names() -> Vec<&'static str> {
    kernels::Kernel::all().map(kernels::Kernel::name).collect()
}

/// The launch bounds that a kernel is compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchBounds {
    /// The largest number of threads of a block.
    pub threads: u32,
    /// The smallest number of blocks of `threads` threads for which a multiprocessor has registers.
    pub blocks: u32,
}

/// Returns the launch bounds of the kernel of this name, or `None` if no such kernel is compiled in.
pub fn launch_bounds(kernel: &str) -> Option<LaunchBounds> {
    let found = kernels::Kernel::find(kernel)?;
    Some(LaunchBounds {
        threads: found.threads,
        blocks: found.blocks,
    })
}
