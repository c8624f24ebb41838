//! The launch of `kernels/dense_forward.cu`.

use bytemuck::Zeroable;

use super::{DenseBatch, DensePlan, DenseSaved, TILE_BYTES, chunks, threads};
use crate::backend::launch::{
    BeamWeights, DeviceMatrix, DevicePtr, ForwardResults, Kernel, Launch, StatisticsSizes,
    TemperaturePlan, TemperatureStep, WARP, kernel_params,
};

kernel_params! {
    /// The parameters of `kernels/dense_forward.cu`.
    pub struct DenseForwardParams in "dense_forward.cu"
    for GIVEN = "dense_given"(512, 2), ADAPTIVE = "dense_adaptive"(512, 2) {
        batch: DenseBatch, gradient: Option<DevicePtr>, gradient_stride: u64,
        softmaxes: Option<DevicePtr>, losses: Option<DevicePtr>, loss: Option<DevicePtr>,
        partials: Option<DevicePtr>, statistics: Option<DevicePtr>, temperature: Option<DevicePtr>,
        previous: Option<DevicePtr>, given: f64, block_counter: Option<DevicePtr>, step: TemperatureStep,
        sizes: StatisticsSizes, beam_weights: BeamWeights, targets: Option<DevicePtr>,
        nth_logits: Option<DevicePtr>, cache_capacity: u32, times_temperature: u32, adapts: u32,
        unused: u32,
    }
}

/// The launch that computes statistics, temperature, loss and, if wanted, the gradient of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct DenseForward<'a> {
    plan: &'a DensePlan,
    temperature: TemperaturePlan,
    with_gradient: bool,
    threads: u32,
    blocks: u32,
    /// How many logits the cache of a block in shared memory holds.
    cache_capacity: u32,
}

impl<'a> DenseForward<'a> {
    /// Mirrors `BlockSums::bytes` plus `scratch_bytes` of `kernels/totals.cuh`.
    const SCRATCH_BYTES: u32 = 64 + 512;
    /// Mirrors `BlockSums::length` of `kernels/totals.cuh`: six sums of the statistics, and the loss.
    const SUMS: usize = 7;

    pub fn new(plan: &'a DensePlan, temperature: TemperaturePlan, with_gradient: bool) -> Self {
        let mut forward = Self {
            plan,
            temperature,
            with_gradient,
            threads: threads(&plan.rows),
            blocks: 1,
            cache_capacity: 0,
        };
        forward.fill();
        forward
    }

    /// Returns the size of the workspace of the launch, in f64: the sums of the blocks and, under BEAR, two f32 for each row.
    pub fn partials(&self) -> usize {
        // Two f32, the target's and the B-th largest logit, take the size of one f64.
        let row_partials = if self.has_beam_weights() {
            self.plan.rows.loss_row_count
        } else {
            0
        };
        Self::SUMS * self.blocks as usize + row_partials as usize
    }

    fn has_beam_weights(&self) -> bool {
        self.plan.rows.totals.beam_weights.is_enabled()
    }

    /// Returns whether the loss of a row depends on all rows, so that the kernel has two phases with a barrier of the grid
    /// between them.
    fn is_two_phase(&self) -> bool {
        self.temperature.adapts() || self.has_beam_weights()
    }

    /// Returns whether all rows fit the caches of their blocks.
    pub fn caches_all_rows(&self) -> bool {
        self.cache_capacity >= self.cache_demand()
    }

    /// Returns the dynamic shared memory of a block, in bytes.
    fn shared_bytes(&self) -> u32 {
        self.fixed_bytes() + self.cache_capacity * self.plan.element.bytes()
    }

    pub fn launch(
        &self,
        saved: &DenseSaved,
        gradient: Option<DeviceMatrix>,
        previous: Option<DevicePtr>,
        [partials, block_counter]: [Option<DevicePtr>; 2],
        results: &ForwardResults,
    ) -> Launch<DenseForwardParams> {
        let (rows, totals) = (&self.plan.rows, &self.plan.rows.totals);
        let block_sum_bytes = 8 * Self::SUMS as u64 * u64::from(self.blocks);
        let row_partials = (partials.filter(|_| self.has_beam_weights()))
            .map(|first| first.offset(block_sum_bytes));
        Launch {
            kernel: self.kernel().name(self.plan.element),
            grid: [self.blocks, 1, 1],
            block: [self.threads, 1, 1],
            shared_bytes: self.shared_bytes(),
            cooperative: self.is_two_phase(),
            params: DenseForwardParams {
                batch: saved.batch,
                gradient: gradient.and_then(|gradient| gradient.address),
                gradient_stride: gradient.map_or(0, |gradient| gradient.row_stride),
                softmaxes: saved.softmaxes,
                losses: (!totals.reduced).then_some(results.loss),
                loss: totals.reduced.then_some(results.loss),
                partials,
                statistics: Some(results.statistics),
                temperature: Some(results.temperature),
                previous: previous.filter(|_| self.temperature.continues),
                given: self.temperature.given,
                block_counter,
                step: self.temperature.step.unwrap_or(TemperatureStep::zeroed()),
                sizes: totals.statistics_sizes(),
                beam_weights: (totals.beam_weights).with_sum_after(Some(results.statistics)),
                targets: row_partials,
                nth_logits: row_partials
                    .map(|row_partials| row_partials.offset(4 * u64::from(rows.loss_row_count))),
                cache_capacity: self.cache_capacity,
                times_temperature: totals.times_temperature.into(),
                adapts: self.temperature.adapts().into(),
                unused: 0,
            },
        }
    }

    /// Sets the number of blocks to those that are resident, or fewer if there is less work, and gives the rest of their shared
    /// memory to the cache.
    fn fill(&mut self) {
        let (limits, bytes) = (&self.plan.limits, self.plan.element.bytes());
        let fixed = self.fixed_bytes();
        let resident = limits.resident_blocks(&self.kernel(), self.threads, fixed);
        let resident = resident.max(1);
        self.blocks = self.work().min(u64::from(resident)) as u32;
        let per_multiprocessor = resident / limits.multiprocessors.max(1);
        let fits = limits.shared_bytes_of_each(per_multiprocessor) / bytes;
        self.cache_capacity = (self.cache_demand()).min(fits.saturating_sub(fixed.div_ceil(bytes)));
    }

    /// Returns the number of blocks that have work. With a gradient there may be more blocks than rows. Those without a row add
    /// zeros to the sums, which therefore have the same bits with and without a gradient.
    fn work(&self) -> u64 {
        let rows = &self.plan.rows;
        let ignored = rows.ignored.len() as u64;
        // For ignored positions, a warp writes a chunk of the gradient, and without a gradient a thread writes a loss.
        let ignored = match (self.with_gradient, rows.totals.reduced) {
            (true, _) => {
                let warps = u64::from(self.threads / WARP);
                (ignored * chunks(self.plan.width, self.plan.element)).div_ceil(warps)
            }
            (false, false) => ignored.div_ceil(u64::from(self.threads)),
            (false, true) => 0,
        };
        (rows.rows.len() as u64 + ignored).max(1)
    }

    fn kernel(&self) -> Kernel {
        match self.is_two_phase() {
            true => DenseForwardParams::ADAPTIVE,
            false => DenseForwardParams::GIVEN,
        }
    }

    fn fixed_bytes(&self) -> u32 {
        let tiles = if self.with_gradient {
            self.threads / WARP * TILE_BYTES
        } else {
            0
        };
        Self::SCRATCH_BYTES + tiles
    }

    /// Returns the largest number of logits that any block could cache: with two phases those of all its rows of the first
    /// phase and of one other row, and otherwise those of one row at a time.
    fn cache_demand(&self) -> u32 {
        // Contiguous logits are cached in full packets, and the row may begin and end inside one.
        let rows = &self.plan.rows;
        let packet = 16 / self.plan.element.bytes();
        let in_packets = |size: u32| size.saturating_add(2 * packet - 2) / packet * packet;
        let longest = |sizes: &[u32]| sizes.iter().copied().max().map_or(0, in_packets);
        if !self.is_two_phase() {
            return longest(&rows.sizes);
        }
        let first = if self.has_beam_weights() {
            0
        } else {
            rows.first_statistics
        };
        let (alone, statistics) = rows.sizes.split_at(first as usize);
        let mut waiting = vec![0u32; self.blocks as usize];
        for (row, &size) in statistics.iter().enumerate() {
            let block = (alone.len() + row) % waiting.len();
            waiting[block] = waiting[block].saturating_add(in_packets(size));
        }
        let most = waiting.into_iter().max().unwrap_or(0);
        most.saturating_add(longest(alone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::launch::{BatchTotals, DenseRows, DeviceLimits, Element};
    use crate::{AdaptiveStrategy, Scope, Statistics, Temperature};

    const H100: DeviceLimits = DeviceLimits {
        multiprocessors: 132,
        shared_bytes_per_block: 227 << 10,
        shared_bytes_per_multiprocessor: 228 << 10,
    };
    const SMALL: DeviceLimits = DeviceLimits {
        multiprocessors: 1,
        shared_bytes_per_block: 24 << 10,
        shared_bytes_per_multiprocessor: 24 << 10,
    };

    /// Rows that all enter the statistics, and as many ignored positions.
    fn rows(sizes: Vec<u32>) -> DenseRows {
        let row = |size: &u32| Statistics::of_moments(*size as usize, 0.0, 0.0, 0.0);
        let statistics: Vec<Statistics> = sizes.iter().map(row).collect();
        DenseRows {
            rows: vec![Zeroable::zeroed(); sizes.len()],
            ignored: vec![0; sizes.len()],
            loss_row_count: sizes.len() as u32,
            first_statistics: 0,
            totals: BatchTotals {
                positions: 2 * sizes.len(),
                times_temperature: true,
                reduced: true,
                statistics: statistics.iter().sum(),
                beam_weights: Zeroable::zeroed(),
            },
            sizes,
        }
    }

    fn plan(rows: &DenseRows, element: Element, limits: &DeviceLimits) -> DensePlan {
        DensePlan::new(rows.clone(), element, 50_000, limits).unwrap()
    }

    fn forward(plan: &DensePlan, with_gradient: bool) -> DenseForward<'_> {
        let strategy = AdaptiveStrategy {
            scope: Scope::Branching,
            ..AdaptiveStrategy::default()
        };
        let temperature = plan.rows.totals.next(&Temperature::from(strategy));
        DenseForward::new(plan, temperature.unwrap(), with_gradient)
    }

    #[test]
    fn all_blocks_are_resident_and_have_work() {
        for count in [0, 1, 7, 500, 20_000] {
            for size in [5, 300, 1100, 50_000] {
                let rows = rows(vec![size; count]);
                for limits in [H100, SMALL] {
                    for (element, gradient) in [(Element::F32, true), (Element::Bf16, false)] {
                        let plan = plan(&rows, element, &limits);
                        let forward = forward(&plan, gradient);
                        let (blocks, shared) = (forward.blocks, forward.shared_bytes());
                        let what =
                            format!("{count} rows of {size}: {blocks} blocks of {shared} bytes");
                        assert!(blocks >= 1, "{what}");
                        let resident =
                            limits.resident_blocks(&forward.kernel(), forward.threads, shared);
                        assert!(blocks <= resident, "{what}");
                        assert!(u64::from(blocks) <= forward.work(), "{what}");
                        assert_eq!(forward.partials(), 7 * blocks as usize);
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_fit_the_shared_memory_are_cached() {
        let kept = |sizes: Vec<u32>, element: Element| {
            let plan = plan(&rows(sizes), element, &H100);
            let forward = forward(&plan, true);
            (forward.caches_all_rows(), forward.cache_capacity)
        };
        assert!(kept(vec![1100; 400], Element::Bf16).0);
        let (caches_all_rows, some) = kept(vec![1100; 40_000], Element::Bf16);
        assert!(!caches_all_rows && some > 1100, "some fit");
        assert!(!kept(vec![50_000; 4], Element::F32).0, "a whole vocabulary");
    }

    #[test]
    fn the_gradient_changes_no_sum() {
        for count in [20, 1000, 20_000] {
            let plan = plan(&rows(vec![300; count]), Element::Bf16, &H100);
            let [with, without] = [true, false].map(|gradient| forward(&plan, gradient));
            assert_eq!(with.threads, without.threads);
            // Each row falls to the same block.
            let row_blocks = |forward: &DenseForward| (forward.blocks as usize).min(count);
            assert_eq!(row_blocks(&with), row_blocks(&without));
        }
    }

    #[test]
    fn without_a_gradient_the_grid_is_of_rows_not_of_positions() {
        let mut rows = rows(vec![300; 20]);
        rows.ignored = vec![0; 100_000];
        let reduced = plan(&rows, Element::Bf16, &H100);
        assert_eq!(forward(&reduced, false).blocks, 20);
        assert!(forward(&reduced, true).blocks > 1000);
        // A loss for each position: one thread writes the 0 of one without a row.
        rows.totals.reduced = false;
        let by_position = plan(&rows, Element::Bf16, &H100);
        let forward = forward(&by_position, false);
        assert_eq!(forward.blocks, 20 + 100_000_u32.div_ceil(forward.threads));
    }

    #[test]
    fn widths_beyond_what_a_kernel_counts_are_refused() {
        assert!(DensePlan::new(rows(vec![2]), Element::F32, 1 << 33, &H100).is_err());
    }
}
