//! The plan for `kernels/linear_forward.cu` and the matrix products around it.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::parts::{LinearParts, Parts};
use super::room::{Room, RowShape};
use super::rows::Group;
use super::{LinearBatch, LinearInputs, LinearRows, Product, check_width, gradient_stride};
use crate::Result;
use crate::backend::launch::{
    DeviceLimits, Element, Launch, StatisticsSizes, TemperaturePlan, TemperatureStep,
};

/// Mirrors `LinearForwardParams` of `kernels/linear_forward.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct LinearForwardParams {
    batch: LinearBatch,
    scores: u64,
    errors: u64,
    gradient: u64,
    gradient_stride: u64,
    losses: u64,
    loss: u64,
    partials: u64,
    statistics: u64,
    temperature: u64,
    previous: u64,
    given: f64,
    arrived: u64,
    step: TemperatureStep,
    sizes: StatisticsSizes,
    tile_rows: u32,
    keeps_head: u32,
    keeps_hidden: u32,
    times_temperature: u32,
    first_block: u32,
    all_blocks: u32,
    parts: LinearParts,
}

const _: () = assert!(
    size_of::<LinearForwardParams>() == 320
        && offset_of!(LinearForwardParams, scores) == 96
        && offset_of!(LinearForwardParams, partials) == 144
        && offset_of!(LinearForwardParams, step) == 192
        && offset_of!(LinearForwardParams, tile_rows) == 264
        && offset_of!(LinearForwardParams, parts) == 288
);

/// Statistics, temperature, loss and what the gradient of a batch is made of.
#[derive(Debug, Clone, Copy)]
pub struct LinearForward<'a> {
    rows: &'a LinearRows,
    element: Element,
    width: u32,
    temperature: TemperaturePlan,
    with_gradient: bool,
    shape: RowShape,
    blocks: u32,
    /// Of the launches that share their sums, this one's first block and the blocks of all.
    first_block: u32,
    all_blocks: u32,
    room: Room,
    parts: Parts,
}

/// What a forward pass reads and writes besides its inputs, in device memory. Addresses of buffers
/// without elements are not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinearForwardBuffers {
    /// The gathered hidden states `[grouped, H]`.
    pub group_hidden: u64,
    /// The gathered head rows `[gathered_head_rows, H]`.
    pub group_head: u64,
    /// For each of [`LinearRows::grouped_sets`] that is frozen, its head rows `[tokens, H]`.
    pub frozen: Vec<u64>,
    /// [`LinearForward::scores`] f32: the scores, and then the errors.
    pub scores: u64,
    /// [`LinearForward::errors`] elements.
    pub errors: u64,
    /// [`LinearForward::gradient`] f32: the unscaled gradient, row by row, and behind it that of parts
    /// of rows.
    pub gradient: u64,
    /// [`LinearRows::losses`] f32.
    pub loss: u64,
    /// [`LinearForward::partials`] f64.
    pub partials: u64,
    /// The f64 fields of [`Statistics`](crate::Statistics).
    pub statistics: u64,
    /// One f64: the temperature that was used.
    pub temperature: u64,
    /// One f64: the temperature so far, or 0 where it is not on the device.
    pub previous: u64,
    /// [`LinearForward::arrived`] u32 that are 0, and are 0 again when the launch is over.
    pub arrived: u64,
}

impl<'a> LinearForward<'a> {
    /// Mirrors `BlockSums::bytes` of `kernels/totals.cuh`.
    const SUMS_BYTES: u32 = 64;
    /// Fields that each block sums: six of the statistics, and the loss.
    const SUMS: usize = 7;

    /// A pass over hidden states of `width` elements.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a width of 0, and
    /// [`Error::TooLarge`](crate::Error::TooLarge) for one beyond 2²⁴.
    pub fn new(
        rows: &'a LinearRows,
        element: Element,
        width: usize,
        temperature: TemperaturePlan,
        with_gradient: bool,
        limits: &DeviceLimits,
    ) -> Result<Self> {
        let width = check_width(width)?;
        Ok(Self::of_width(
            rows,
            element,
            width,
            temperature,
            with_gradient,
            limits,
        ))
    }

    pub(super) fn of_width(
        rows: &'a LinearRows,
        element: Element,
        width: u32,
        temperature: TemperaturePlan,
        with_gradient: bool,
        limits: &DeviceLimits,
    ) -> Self {
        let shape = RowShape::new(rows, element, width, Self::SUMS_BYTES);
        let room = shape.largest_room(rows, limits);
        let resident = limits.resident_blocks(shape.threads, shape.shared_bytes(room));
        let parts = Parts::new(rows, room.tile_rows, resident);
        let blocks = (parts.items(rows).count() as u32).clamp(1, resident.max(1));
        Self {
            rows,
            element,
            width,
            temperature,
            with_gradient,
            shape,
            blocks,
            first_block: 0,
            all_blocks: blocks,
            room,
            parts,
        }
    }

    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// As one of several passes that share their sums.
    pub(super) fn among(mut self, first_block: u32, all_blocks: u32) -> Self {
        (self.first_block, self.all_blocks) = (first_block, all_blocks);
        self
    }

    /// How many scores there is room for.
    #[must_use]
    pub fn scores(&self) -> usize {
        self.rows.grouped_scores as usize
    }

    /// How many errors are rounded for the products of the groups.
    #[must_use]
    pub fn errors(&self) -> usize {
        let rounded = self.with_gradient && self.element != Element::F32;
        if rounded {
            self.rows.grouped_scores as usize
        } else {
            0
        }
    }

    /// The f32 of the unscaled gradient, of rows and of parts of rows.
    #[must_use]
    pub fn gradient(&self) -> usize {
        let rows = self.rows.rows.len() + self.parts.gradients();
        let wanted = if self.with_gradient { rows } else { 0 };
        wanted * gradient_stride(self.width) as usize
    }

    /// How many f64 of scratch the launch needs.
    #[must_use]
    pub fn partials(&self) -> usize {
        self.parts.scored() + Self::SUMS * (self.all_blocks + self.parts.rows) as usize
    }

    /// How many counters the launch needs: one for its blocks, and one for each row in parts.
    #[must_use]
    pub fn arrived(&self) -> usize {
        1 + self.parts.rows as usize
    }

    /// How many parts there are of ragged rows that are taken in parts.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.parts.count(self.rows)
    }

    /// The most tiles of head rows that a block takes, one after another.
    #[must_use]
    pub fn longest_chain(&self) -> u32 {
        (self.parts).longest_chain(self.rows, self.room.tile_rows, self.blocks)
    }

    /// Whether each head row of a ragged set is kept on chip between its two uses.
    #[must_use]
    pub fn keeps_tiles(&self) -> bool {
        self.room.keeps_head || self.rows.longest_ragged == 0
    }

    /// Whether the longest ragged set is taken in one tile.
    #[must_use]
    pub fn keeps_sets(&self) -> bool {
        self.keeps_tiles() && self.room.tile_rows >= self.rows.longest_ragged
    }

    /// Threads and bytes of shared memory of a block.
    #[must_use]
    pub fn block_shape(&self) -> [u32; 2] {
        [self.shape.threads, self.shape.shared_bytes(self.room)]
    }

    /// Launches and products of the pass over listed sets, the gathering included.
    #[must_use]
    pub fn launches(&self) -> usize {
        let groups = self.rows.groups.len();
        let products = if self.with_gradient { 2 } else { 1 };
        1 + usize::from(self.temperature.adapts()) + usize::from(groups > 0) + products * groups
    }

    /// The scores of the groups: before the launch, after the gathering.
    pub fn score_products(
        &self,
        buffers: &'a LinearForwardBuffers,
    ) -> impl Iterator<Item = Product> + '_ {
        self.products(buffers, |group, head| Product {
            element: self.element,
            rows: group.rows,
            columns: group.tokens,
            inner: self.width,
            left: buffers.group_hidden + self.bytes(u64::from(group.first) * u64::from(self.width)),
            left_stride: self.width.into(),
            left_transposed: false,
            right: head,
            right_stride: self.width.into(),
            right_transposed: true,
            result: buffers.scores + 4 * group.scores,
            result_stride: group.stride.into(),
            accumulates: false,
        })
    }

    /// The gradients of the groups, where they are prepared: after the launch.
    pub fn gradient_products(
        &self,
        buffers: &'a LinearForwardBuffers,
    ) -> impl Iterator<Item = Product> + '_ {
        let errors = match self.element {
            Element::F32 => buffers.scores,
            _ => buffers.errors,
        };
        let wanted = usize::from(self.with_gradient) * self.rows.groups.len();
        let stride = gradient_stride(self.width);
        let products = self.products(buffers, move |group, head| Product {
            element: self.element,
            rows: group.rows,
            columns: self.width,
            inner: group.tokens,
            left: errors + self.bytes(group.scores),
            left_stride: group.stride.into(),
            left_transposed: false,
            right: head,
            right_stride: self.width.into(),
            right_transposed: false,
            result: buffers.gradient + 4 * u64::from(group.first) * stride,
            result_stride: stride,
            accumulates: false,
        });
        products.take(wanted)
    }

    fn products<'b>(
        &'b self,
        buffers: &'b LinearForwardBuffers,
        product: impl Fn(&Group, u64) -> Product + 'b,
    ) -> impl Iterator<Item = Product> + 'b {
        self.rows
            .groups
            .iter()
            .enumerate()
            .map(move |(index, group)| {
                let head = match group.gathered {
                    Some(first) => {
                        buffers.group_head + self.bytes(u64::from(first) * u64::from(self.width))
                    }
                    None => buffers.frozen.get(index).copied().unwrap_or(0),
                };
                product(group, head)
            })
    }

    /// The launch that makes the statistics and the temperature, where rows must wait for them: after
    /// the products, before the launch over all rows.
    #[must_use]
    pub fn statistics_launch(
        &self,
        inputs: &LinearInputs,
        buffers: &LinearForwardBuffers,
    ) -> Option<Launch<LinearForwardParams>> {
        let kernel = match self.element {
            Element::F32 => "linear_statistics_f32",
            Element::F16 => "linear_statistics_f16",
            Element::Bf16 => "linear_statistics_bf16",
        };
        let waits = self.temperature.adapts();
        waits.then(|| self.launch_of(kernel, inputs, buffers))
    }

    /// The launch over all rows. It may be repeated after the products that come before it.
    #[must_use]
    pub fn launch(
        &self,
        inputs: &LinearInputs,
        buffers: &LinearForwardBuffers,
    ) -> Launch<LinearForwardParams> {
        let kernel = match self.element {
            Element::F32 => "linear_forward_f32",
            Element::F16 => "linear_forward_f16",
            Element::Bf16 => "linear_forward_bf16",
        };
        let mut launch = self.launch_of(kernel, inputs, buffers);
        if self.temperature.adapts() {
            launch.params.previous = buffers.temperature;
            launch.params.statistics = 0;
        }
        launch
    }

    /// The launch once more, at the temperature that was used, for the errors of groups alone.
    pub(super) fn errors_launch(
        &self,
        inputs: &LinearInputs,
        buffers: &LinearForwardBuffers,
    ) -> Launch<LinearForwardParams> {
        let mut launch = self.launch(inputs, buffers);
        let params = &mut launch.params;
        params.previous = buffers.temperature;
        (params.loss, params.losses, params.statistics) = (0, 0, 0);
        // Any address says that errors are wanted: gradients are written there for ragged rows alone.
        (params.gradient, params.errors) = (buffers.scores, 0);
        launch
    }

    fn launch_of(
        &self,
        kernel: &'static str,
        inputs: &LinearInputs,
        buffers: &LinearForwardBuffers,
    ) -> Launch<LinearForwardParams> {
        let [threads, shared_bytes] = self.block_shape();
        let [loss, losses] = match self.rows.reduced {
            true => [buffers.loss, 0],
            false => [0, buffers.loss],
        };
        let only = |wanted: bool, address: u64| if wanted { address } else { 0 };
        Launch {
            kernel,
            grid: [self.blocks, 1, 1],
            block: [threads, 1, 1],
            shared_bytes,
            cooperative: false,
            params: LinearForwardParams {
                batch: LinearBatch::new(self.rows, self.width, inputs),
                scores: buffers.scores,
                errors: only(self.errors() > 0, buffers.errors),
                gradient: only(self.with_gradient, buffers.gradient),
                gradient_stride: gradient_stride(self.width),
                losses,
                loss,
                partials: buffers.partials + 8 * self.parts.scored() as u64,
                statistics: buffers.statistics,
                temperature: buffers.temperature,
                previous: only(self.temperature.continues, buffers.previous),
                given: self.temperature.given,
                arrived: buffers.arrived,
                step: self.temperature.step.unwrap_or(TemperatureStep::zeroed()),
                sizes: self.rows.statistics_sizes(),
                tile_rows: self.room.tile_rows,
                keeps_head: self.room.keeps_head.into(),
                keeps_hidden: self.room.keeps_hidden.into(),
                times_temperature: self.rows.times_temperature.into(),
                first_block: self.first_block,
                all_blocks: self.all_blocks,
                parts: self.parts.params(buffers.partials, buffers.arrived + 4),
            },
        }
    }

    fn bytes(&self, elements: u64) -> u64 {
        elements * u64::from(self.element.bytes())
    }
}
