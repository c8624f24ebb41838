//! Plans for `kernels/sum.cu`.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::{DeviceLimits, Launch, reduction_bytes};

/// Mirrors `SumParams` of `kernels/sum.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SumParams {
    values: u64,
    partials: u64,
    total: u64,
    count: u64,
    chunk: u64,
}

const _: () = assert!(size_of::<SumParams>() == 40 && offset_of!(SumParams, chunk) == 32);

/// A sum of f32 numbers, in an order that is fixed by its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    count: u64,
    blocks: u32,
    chunk: u64,
}

impl Sum {
    const THREADS: u32 = 256;
    const SHARED_BYTES: u32 = reduction_bytes(4);
    /// A block's chunk is a multiple of the numbers in a 16-byte packet.
    const PACKET: u64 = 4;
    /// Fewer packets a thread are not worth a block.
    const LEAST_CHUNK: u64 = Self::PACKET * Self::THREADS as u64;

    /// The sum of `count` numbers on a device with these limits.
    #[must_use]
    pub fn new(count: u64, limits: &DeviceLimits) -> Self {
        let resident = limits
            .resident_blocks(Self::THREADS, Self::SHARED_BYTES)
            .max(1);
        let blocks = count
            .div_ceil(Self::LEAST_CHUNK)
            .clamp(1, u64::from(resident));
        let chunk = count.div_ceil(blocks).next_multiple_of(Self::PACKET);
        Self {
            count,
            blocks: blocks as u32,
            chunk,
        }
    }

    /// How many partial sums there are.
    #[must_use]
    pub fn partials(&self) -> usize {
        self.blocks as usize
    }

    /// One sum a block.
    #[must_use]
    pub fn by_block(&self, values: u64, partials: u64) -> Launch<SumParams> {
        self.launch("block_sum", false, [values, partials, 0])
    }

    /// One sum a block, and their total.
    #[must_use]
    pub fn total(&self, values: u64, partials: u64, total: u64) -> Launch<SumParams> {
        self.launch("grid_sum", true, [values, partials, total])
    }

    fn launch(
        &self,
        kernel: &'static str,
        cooperative: bool,
        [values, partials, total]: [u64; 3],
    ) -> Launch<SumParams> {
        Launch {
            kernel,
            grid: [self.blocks, 1, 1],
            block: [Self::THREADS, 1, 1],
            shared_bytes: Self::SHARED_BYTES,
            cooperative,
            params: SumParams {
                values,
                partials,
                total,
                count: self.count,
                chunk: self.chunk,
            },
        }
    }
}
