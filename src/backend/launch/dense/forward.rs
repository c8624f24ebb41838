//! The plan for `kernels/dense_forward.cu`.

use bytemuck::Zeroable;

use super::{
    DenseBatch, DenseInputs, DenseRows, GradientView, TILE_BYTES, check_width, chunks, threads,
};
use crate::Result;
use crate::backend::launch::{
    BeamWeights, DeviceLimits, DevicePtr, Element, Kernel, Launch, StatisticsSizes,
    TemperaturePlan, TemperatureStep, WARP, kernel_params,
};

kernel_params! {
    /// What `kernels/dense_forward.cu` is given.
    pub struct DenseForwardParams in "dense_forward.cu"
    for GIVEN = "dense_given"(512, 2), ADAPTIVE = "dense_adaptive"(512, 2) {
        batch: DenseBatch, gradient: Option<DevicePtr>, gradient_stride: u64,
        softmaxes: Option<DevicePtr>, losses: Option<DevicePtr>, loss: Option<DevicePtr>,
        partials: Option<DevicePtr>, statistics: Option<DevicePtr>, temperature: Option<DevicePtr>,
        previous: Option<DevicePtr>, given: f64, arrived: Option<DevicePtr>, step: TemperatureStep,
        sizes: StatisticsSizes, beam_weights: BeamWeights, targets: Option<DevicePtr>,
        nth_logits: Option<DevicePtr>, kept_capacity: u32, times_temperature: u32, adapts: u32,
        unused: u32,
    }
}

/// Statistics, temperature, loss and (where asked for) the gradient of a batch, in one launch.
#[derive(Debug, Clone, Copy)]
pub struct DenseForward<'a> {
    rows: &'a DenseRows,
    element: Element,
    width: u32,
    temperature: TemperaturePlan,
    with_gradient: bool,
    threads: u32,
    blocks: u32,
    /// Logits that a block keeps.
    kept: u32,
}

/// What a forward pass writes, in device memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseForwardBuffers {
    /// The gradient, where the plan is with one.
    pub gradient: Option<GradientView>,
    /// [`DenseRows::SOFTMAX_BYTES`] for each of [`DenseRows::counting`]; `None` where there is none.
    pub softmaxes: Option<DevicePtr>,
    /// [`DenseRows::losses`] f32; `None` where there is none.
    pub loss: Option<DevicePtr>,
    /// [`DenseForward::partials`] f64.
    pub partials: Option<DevicePtr>,
    /// The f64 fields of [`Statistics`](crate::Statistics) and, under BEAR, behind them the sum of the rows' weights.
    pub statistics: Option<DevicePtr>,
    /// One f64: the temperature that was used.
    pub temperature: Option<DevicePtr>,
    /// One f64: the temperature so far; `None` where it is not on the device.
    pub previous: Option<DevicePtr>,
    /// One u32 that is 0, and is 0 again when the launch is over.
    pub arrived: Option<DevicePtr>,
}

impl<'a> DenseForward<'a> {
    /// Mirrors `BlockSums::bytes` and `scratch_bytes` of the kernel.
    const SCRATCH_BYTES: u32 = 64 + 512;
    /// Fields that each block sums: six of the statistics, and the loss.
    const SUMS: usize = 7;

    /// A pass over logits of `width` elements a position.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) for a width that 32 bits do not count.
    pub fn new(
        rows: &'a DenseRows,
        element: Element,
        width: usize,
        temperature: TemperaturePlan,
        with_gradient: bool,
        limits: &DeviceLimits,
    ) -> Result<Self> {
        let width = check_width(width)?;
        let mut plan = Self {
            rows,
            element,
            width,
            temperature,
            with_gradient,
            threads: threads(rows),
            blocks: 1,
            kept: 0,
        };
        plan.fill(limits);
        Ok(plan)
    }

    /// How many f64 of scratch the launch needs.
    #[must_use]
    pub fn partials(&self) -> usize {
        // Two f32 a row where rows wait for their weights.
        let of_rows = if self.rows.beam_weights.weighs() {
            self.rows.counting()
        } else {
            0
        };
        Self::SUMS * self.blocks as usize + of_rows
    }

    /// Whether rows wait for something that all rows give.
    fn waits(&self) -> bool {
        self.temperature.adapts() || self.rows.beam_weights.weighs()
    }

    /// Whether every valid logit is loaded from memory once: whether all rows fit what their blocks
    /// can keep.
    #[must_use]
    pub fn keeps_all(&self) -> bool {
        self.kept >= self.wanted()
    }

    /// Threads and bytes of shared memory of a block.
    #[must_use]
    pub fn block_shape(&self) -> [u32; 2] {
        let kept = self.kept * self.element.bytes();
        [self.threads, self.fixed_bytes() + kept]
    }

    /// The launch. It may be repeated: nothing is left behind.
    #[must_use]
    pub fn launch(
        &self,
        inputs: &DenseInputs,
        buffers: &DenseForwardBuffers,
    ) -> Launch<DenseForwardParams> {
        let [threads, shared_bytes] = self.block_shape();
        let gradient = buffers.gradient.filter(|_| self.with_gradient);
        let reduced = self.rows.reduced;
        let of_blocks = 8 * Self::SUMS as u64 * u64::from(self.blocks);
        let of_rows = (buffers.partials.filter(|_| self.rows.beam_weights.weighs()))
            .map(|partials| partials.offset(of_blocks));
        Launch {
            kernel: self.kernel().name(self.element),
            grid: [self.blocks, 1, 1],
            block: [threads, 1, 1],
            shared_bytes,
            cooperative: self.waits(),
            params: DenseForwardParams {
                batch: DenseBatch::new(self.rows, self.width, inputs),
                gradient: gradient.and_then(|gradient| gradient.address),
                gradient_stride: gradient.map_or(0, |gradient| gradient.row_stride),
                softmaxes: buffers.softmaxes,
                losses: buffers.loss.filter(|_| !reduced),
                loss: buffers.loss.filter(|_| reduced),
                partials: buffers.partials,
                statistics: buffers.statistics,
                temperature: buffers.temperature,
                previous: buffers.previous.filter(|_| self.temperature.continues),
                given: self.temperature.given,
                arrived: buffers.arrived,
                step: self.temperature.step.unwrap_or(TemperatureStep::zeroed()),
                sizes: self.rows.statistics_sizes(),
                beam_weights: self.rows.beam_weights.with_sum_behind(buffers.statistics),
                targets: of_rows,
                nth_logits: of_rows.map(|of_rows| of_rows.offset(4 * self.rows.counting() as u64)),
                kept_capacity: self.kept,
                times_temperature: self.rows.times_temperature.into(),
                adapts: self.temperature.adapts().into(),
                unused: 0,
            },
        }
    }

    /// As many blocks as are resident, where there is work for them, and what remains of shared
    /// memory for logits.
    fn fill(&mut self, limits: &DeviceLimits) {
        let fixed = self.fixed_bytes();
        let resident = limits.resident_blocks(&self.kernel(), self.threads, fixed);
        let resident = resident.max(1);
        self.blocks = self.work().min(u64::from(resident)) as u32;
        let per_multiprocessor = resident / limits.multiprocessors.max(1);
        let room = limits.shared_bytes_of_each(per_multiprocessor) / self.element.bytes();
        self.kept = self
            .wanted()
            .min(room.saturating_sub(fixed.div_ceil(self.element.bytes())));
    }

    /// How many blocks find something to do. Blocks beyond the rows have none, with a gradient or
    /// without, and so add zeros to the sums of the others: the sums stay the same to the bit.
    fn work(&self) -> u64 {
        let idle = self.rows.idle.len() as u64;
        // Of positions without a row, warps write pieces of the gradient, or else threads a loss each.
        let idle = match (self.with_gradient, self.rows.reduced) {
            (true, _) => {
                let warps = u64::from(self.threads / WARP);
                (idle * chunks(self.width, self.element)).div_ceil(warps)
            }
            (false, false) => idle.div_ceil(u64::from(self.threads)),
            (false, true) => 0,
        };
        (self.rows.rows.len() as u64 + idle).max(1)
    }

    fn kernel(&self) -> Kernel {
        match self.waits() {
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

    /// Logits that no block has more of to keep: of all its statistics rows at once where they wait
    /// for the temperature, and otherwise of one row at a time.
    fn wanted(&self) -> u32 {
        // A stream is kept in the packets that it lies in, of which the first and the last may be shared.
        let packet = 16 / self.element.bytes();
        let room = |size: u32| size.saturating_add(2 * packet - 2) / packet * packet;
        let longest = |sizes: &[u32]| sizes.iter().copied().max().map_or(0, room);
        if !self.waits() {
            return longest(&self.rows.sizes);
        }
        let first = if self.rows.beam_weights.weighs() {
            0
        } else {
            self.rows.first_statistics
        };
        let (alone, statistics) = self.rows.sizes.split_at(first as usize);
        let mut waiting = vec![0u32; self.blocks as usize];
        for (row, &size) in statistics.iter().enumerate() {
            let block = (alone.len() + row) % waiting.len();
            waiting[block] = waiting[block].saturating_add(room(size));
        }
        let most = waiting.into_iter().max().unwrap_or(0);
        most.saturating_add(longest(alone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// Rows that all enter the statistics, and as many idle positions.
    fn rows(sizes: Vec<u32>) -> DenseRows {
        let row = |size: &u32| Statistics::of_moments(*size as usize, 0.0, 0.0, 0.0);
        let statistics: Vec<Statistics> = sizes.iter().map(row).collect();
        DenseRows {
            rows: vec![Zeroable::zeroed(); sizes.len()],
            idle: vec![0; sizes.len()],
            counting: sizes.len() as u32,
            first_statistics: 0,
            times_temperature: true,
            reduced: true,
            statistics: statistics.iter().sum(),
            beam_weights: Zeroable::zeroed(),
            sizes,
        }
    }

    fn plan<'a>(
        rows: &'a DenseRows,
        element: Element,
        with_gradient: bool,
        limits: &DeviceLimits,
    ) -> DenseForward<'a> {
        let strategy = AdaptiveStrategy {
            scope: Scope::Branching,
            ..AdaptiveStrategy::default()
        };
        let temperature = rows.next(&Temperature::from(strategy)).unwrap();
        DenseForward::new(rows, element, 50_000, temperature, with_gradient, limits).unwrap()
    }

    #[test]
    fn all_blocks_are_resident_and_none_has_nothing_to_do() {
        for count in [0, 1, 7, 500, 20_000] {
            for size in [5, 300, 1100, 50_000] {
                let rows = rows(vec![size; count]);
                for limits in [H100, SMALL] {
                    for (element, gradient) in [(Element::F32, true), (Element::Bf16, false)] {
                        let plan = plan(&rows, element, gradient, &limits);
                        let [threads, shared] = plan.block_shape();
                        let what = format!("{count} rows of {size}: {plan:?}");
                        assert!(plan.blocks >= 1, "{what}");
                        let resident = limits.resident_blocks(&plan.kernel(), threads, shared);
                        assert!(plan.blocks <= resident, "{what}");
                        assert!(u64::from(plan.blocks) <= plan.work(), "{what}");
                        assert_eq!(plan.partials(), 7 * plan.blocks as usize);
                    }
                }
            }
        }
    }

    #[test]
    fn what_fits_the_chip_is_kept_there() {
        let rows_that_fit = rows(vec![1100; 400]);
        assert!(plan(&rows_that_fit, Element::Bf16, true, &H100).keeps_all());
        let too_many = rows(vec![1100; 40_000]);
        let plan_of_too_many = plan(&too_many, Element::Bf16, true, &H100);
        assert!(!plan_of_too_many.keeps_all());
        assert!(plan_of_too_many.kept > 1100, "some fit");
        let whole_vocabulary = rows(vec![50_000; 4]);
        assert!(!plan(&whole_vocabulary, Element::F32, true, &H100).keeps_all());
    }

    #[test]
    fn the_gradient_changes_no_sum() {
        for count in [20, 1000, 20_000] {
            let rows = rows(vec![300; count]);
            let [with, without] =
                [true, false].map(|gradient| plan(&rows, Element::Bf16, gradient, &H100));
            assert_eq!(with.threads, without.threads);
            // Each row falls to the same block.
            let row_blocks = |plan: &DenseForward| (plan.blocks as usize).min(count);
            assert_eq!(row_blocks(&with), row_blocks(&without));
        }
    }

    #[test]
    fn without_a_gradient_the_grid_is_of_rows_not_of_positions() {
        let mut rows = rows(vec![300; 20]);
        rows.idle = vec![0; 100_000];
        assert_eq!(plan(&rows, Element::Bf16, false, &H100).blocks, 20);
        assert!(plan(&rows, Element::Bf16, true, &H100).blocks > 1000);
        // A loss for each position: one thread writes the 0 of one without a row.
        rows.reduced = false;
        let plan = plan(&rows, Element::Bf16, false, &H100);
        assert_eq!(plan.blocks, 20 + 100_000_u32.div_ceil(plan.threads));
    }

    #[test]
    fn widths_beyond_what_a_kernel_counts_are_refused() {
        let rows = rows(vec![2]);
        let temperature = TemperaturePlan::at(1.0);
        let wide = DenseForward::new(&rows, Element::F32, 1 << 33, temperature, true, &H100);
        assert!(wide.is_err());
    }
}
