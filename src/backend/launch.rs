//! Launch plans: which kernel, in which shape, with which parameters. They are made without a device and issued to a
//! [`Stream`]: candle's, cust's, or the emulator of the tests, which so run the same.

mod beam_weights;
mod decode;
mod dense;
mod device_ptr;
mod kernel_params;
mod linear;
mod results;
mod stream;
mod temperature;

use beam_weights::BeamWeights;
pub use decode::{DecodeBeams, DecodeChoice, DecodeFault, DecodePlan, DecodeResults, DecodeScores};
pub(crate) use decode::{DecodeEdge, DecodeSet, NewBeam};
pub use dense::{DensePlan, DenseRows, DenseSaved, DenseTensors};
pub use device_ptr::{DeviceMatrix, DevicePtr};
use kernel_params::{Kernel, kernel_params};
pub use linear::{LinearGradients, LinearPlan, LinearRows, LinearSaved, LinearTensors, LinearWork};
pub use results::{BatchTotals, ForwardResults, Upstream};
#[cfg(feature = "cuda")]
pub(crate) use stream::bytes_of_parts;
#[cfg(any(feature = "cuda", feature = "cust"))]
pub(crate) use stream::places_of_parts;
pub use stream::{Lifetime, Stream};
pub use temperature::TemperaturePlan;
use temperature::{StatisticsSizes, TemperatureStep};

/// The threads of a warp.
const WARP: u32 = 32;

/// Returns how much shared memory a block reduction of `kernels/reduce.cuh` needs for values of so many bytes.
const fn reduction_bytes(value_bytes: u32) -> u32 {
    1024 / WARP * value_bytes
}

/// A kernel, the shape it is launched in, and its one parameter, which is passed by value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Launch<P> {
    /// The kernel's name in its source.
    pub kernel: &'static str,
    /// How many blocks there are, in each dimension.
    pub grid: [u32; 3],
    /// How many threads a block has, in each dimension.
    pub block: [u32; 3],
    /// The dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Whether all blocks must be resident together, because they wait for each other.
    pub cooperative: bool,
    /// The parameters: a struct that a kernel source mirrors, with device addresses in it.
    pub params: P,
}

/// The limits of a device that launch plans depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// How many multiprocessors there are.
    pub multiprocessors: u32,
    /// The shared memory that one block may ask for, in bytes.
    pub shared_bytes_per_block: u32,
    /// The shared memory of a multiprocessor for all its blocks, in bytes.
    pub shared_bytes_per_multiprocessor: u32,
}

impl DeviceLimits {
    /// The runtime keeps this much of each block's shared memory for itself.
    const RESERVED_SHARED_BYTES: u32 = 1024;
    /// Blocks are given whole units of shared memory.
    const SHARED_UNIT_BYTES: u32 = 128;
    /// The fewest that any supported architecture holds (the RTX 30 series).
    const BLOCKS_PER_MULTIPROCESSOR: u32 = 16;

    /// Returns how many blocks of this shape are sure to be resident together: the most that a cooperative
    /// launch may have. Returns 0 where not even one fits.
    fn resident_blocks(&self, kernel: &Kernel, threads: u32, shared_bytes: u32) -> u32 {
        if threads > kernel.threads || shared_bytes > self.shared_bytes_per_block {
            return 0;
        }
        // Registers go to warps: smaller blocks find as many as larger ones of as many threads.
        let by_registers = kernel.threads * kernel.blocks / threads.max(1);
        let blocks = by_registers.min(Self::BLOCKS_PER_MULTIPROCESSOR);
        let held =
            shared_bytes.next_multiple_of(Self::SHARED_UNIT_BYTES) + Self::RESERVED_SHARED_BYTES;
        let by_shared_memory = self.shared_bytes_per_multiprocessor / held;
        self.multiprocessors * blocks.min(by_shared_memory)
    }

    /// Returns the shared memory that each of so many blocks of a multiprocessor can have, in bytes.
    fn shared_bytes_of_each(&self, blocks: u32) -> u32 {
        let share = self.shared_bytes_per_multiprocessor / blocks.max(1);
        let units = share.saturating_sub(Self::RESERVED_SHARED_BYTES) / Self::SHARED_UNIT_BYTES;
        (units * Self::SHARED_UNIT_BYTES).min(self.shared_bytes_per_block)
    }
}

/// The element types that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl Element {
    /// Returns the size of one element, in bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

kernel_params! {
    /// Token sets in device memory.
    pub struct TokenSetsView in "token_sets.cuh" {
        /// The u32 offsets; `None` where every set is the whole vocabulary.
        offsets: Option<DevicePtr>,
        /// The u32 tokens.
        tokens: Option<DevicePtr>,
        /// How many tokens there are in all.
        vocabulary: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: DeviceLimits = DeviceLimits {
        multiprocessors: 10,
        shared_bytes_per_block: 99 << 10,
        shared_bytes_per_multiprocessor: 100 << 10,
    };

    #[test]
    fn what_is_resident_is_bound_by_registers_and_by_shared_memory() {
        let resident = |[threads, blocks]: [u32; 2], of: u32, shared_bytes: u32| {
            let names = ["a kernel"; 3];
            let kernel = Kernel {
                names,
                threads,
                blocks,
            };
            LIMITS.resident_blocks(&kernel, of, shared_bytes)
        };
        assert_eq!(resident([512, 2], 256, 0), 40);
        assert_eq!(resident([512, 2], 256, 49 << 10), 20);
        assert_eq!(resident([512, 2], 256, 99 << 10), 10);
        assert_eq!(resident([512, 2], 256, 100 << 10), 0);
        assert_eq!(resident([512, 2], 1024, 0), 0);
        assert_eq!(resident([512, 2], 32, 0), 160);
        assert_eq!(resident([256, 2], 256, 0), 20);
        assert_eq!(resident([256, 6], 256, 0), 60);
        // Each takes a little more than a third, of what the runtime keeps and of whole units.
        assert_eq!(resident([512, 2], 256, 33_108), 20);
        assert_eq!(resident([512, 2], 256, 33_024), 30);
        assert_eq!(LIMITS.shared_bytes_of_each(3), 33_024);
    }
}
