//! Launch plans: kernel, launch shape and parameters. They are computed without a device and issued to a [`Stream`], which is
//! candle's, cust's or that of the emulator, so that all three run the same launches.

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
pub use linear::{
    HeadBase, LinearGradients, LinearPlan, LinearRows, LinearSaved, LinearTensors, LinearWork,
};
pub use results::{BatchTotals, ForwardResults, Upstream};
#[cfg(any(feature = "cuda", feature = "cust", feature = "raw-cuda"))]
pub(crate) use stream::addresses_of_parts;
#[cfg(any(feature = "cuda", feature = "raw-cuda"))]
pub(crate) use stream::bytes_of_parts;
pub use stream::{Lifetime, Stream};
pub use temperature::TemperaturePlan;
use temperature::{StatisticsSizes, TemperatureStep};

/// The threads of a warp.
const WARP: u32 = 32;

/// Returns the shared memory that a block reduction of `kernels/reduce.cuh` needs, in bytes, for values of `value_bytes`.
const fn reduction_bytes(value_bytes: u32) -> u32 {
    1024 / WARP * value_bytes
}

/// A kernel launch: the kernel, the launch shape, and the kernel's one parameter, which is passed by value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Launch<P> {
    /// The kernel's name in its source.
    pub kernel: &'static str,
    /// The number of blocks in each dimension.
    pub grid: [u32; 3],
    /// The number of threads of a block in each dimension.
    pub block: [u32; 3],
    /// The dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Whether the launch is cooperative: all blocks must be resident at the same time, because they wait for each other.
    pub cooperative: bool,
    /// The parameter struct, which the kernel source mirrors. It holds device addresses.
    pub params: P,
}

/// The limits of a device that launch plans depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// The number of multiprocessors.
    pub multiprocessors: u32,
    /// The largest shared memory of one block, in bytes.
    pub shared_bytes_per_block: u32,
    /// The shared memory of a multiprocessor, for all its resident blocks, in bytes.
    pub shared_bytes_per_multiprocessor: u32,
}

impl DeviceLimits {
    /// The shared memory that the CUDA runtime reserves for each block.
    const RESERVED_SHARED_BYTES: u32 = 1024;
    /// The granularity in which shared memory is allocated to blocks.
    const SHARED_UNIT_BYTES: u32 = 128;
    /// The smallest limit of resident blocks of all supported architectures (sm_86, the RTX 30 series).
    const BLOCKS_PER_MULTIPROCESSOR: u32 = 16;

    /// Returns a lower bound of the blocks of this shape that are resident at the same time, which a cooperative launch must
    /// not exceed. Returns 0 if not even one fits.
    fn resident_blocks(&self, kernel: &Kernel, threads: u32, shared_bytes: u32) -> u32 {
        if threads > kernel.threads || shared_bytes > self.shared_bytes_per_block {
            return 0;
        }
        // Registers are allocated to warps, so the bound on threads holds for blocks of any size.
        let by_registers = kernel.threads * kernel.blocks / threads.max(1);
        let blocks = by_registers.min(Self::BLOCKS_PER_MULTIPROCESSOR);
        let held =
            shared_bytes.next_multiple_of(Self::SHARED_UNIT_BYTES) + Self::RESERVED_SHARED_BYTES;
        let by_shared_memory = self.shared_bytes_per_multiprocessor / held;
        self.multiprocessors * blocks.min(by_shared_memory)
    }

    /// Returns the shared memory of each block, in bytes, if `blocks` of them are resident on a multiprocessor.
    fn shared_bytes_of_each(&self, blocks: u32) -> u32 {
        let each = self.shared_bytes_per_multiprocessor / blocks.max(1);
        let units = each.saturating_sub(Self::RESERVED_SHARED_BYTES) / Self::SHARED_UNIT_BYTES;
        (units * Self::SHARED_UNIT_BYTES).min(self.shared_bytes_per_block)
    }
}

/// The element types that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// f32: IEEE single precision.
    F32,
    /// f16: IEEE half precision.
    F16,
    /// bf16: the upper 16 bits of a single.
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
    /// Token sets in device memory, in compressed sparse rows.
    pub struct TokenSetsView in "token_sets.cuh" {
        /// The u32 offsets `[sets + 1]`; `None` if every set is the whole vocabulary.
        offsets: Option<DevicePtr>,
        /// The u32 tokens `[offsets[sets]]`; `None` if every set is the whole vocabulary.
        tokens: Option<DevicePtr>,
        /// The size of the whole vocabulary.
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
        // With the reserved bytes and rounded up to units, each takes a little more than a third.
        assert_eq!(resident([512, 2], 256, 33_108), 20);
        assert_eq!(resident([512, 2], 256, 33_024), 30);
        assert_eq!(LIMITS.shared_bytes_of_each(3), 33_024);
    }
}
