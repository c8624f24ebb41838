//! The plan for `kernels/linear_errors.cu`, `kernels/linear_head_gradient.cu` and the matrix products
//! between them.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::room::{Room, RowShape};
use super::{
    GradientScale, LinearBatch, LinearInputs, LinearRows, LinearShares, Product, check_width,
    gradient_stride, packet,
};
use crate::Result;
use crate::backend::launch::{DeviceLimits, Element, Launch};

/// Mirrors `LinearErrorsParams` of `kernels/linear_errors.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct LinearErrorsParams {
    batch: LinearBatch,
    scale: GradientScale,
    scaled: u64,
    scaled_stride: u64,
    errors: u64,
    tile_rows: u32,
    keeps_hidden: u32,
}

const _: () = assert!(
    size_of::<LinearErrorsParams>() == 152
        && offset_of!(LinearErrorsParams, scaled) == 120
        && offset_of!(LinearErrorsParams, tile_rows) == 144
);

/// Mirrors `LinearHeadGradientParams` of `kernels/linear_head_gradient.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct LinearHeadGradientParams {
    shares: u64,
    tokens: u64,
    starts: u64,
    scaled: u64,
    products: u64,
    stride: u64,
    errors: u64,
    head: u64,
    bias: u64,
    width: u32,
    count: u32,
}

const _: () = assert!(
    size_of::<LinearHeadGradientParams>() == 80
        && offset_of!(LinearHeadGradientParams, width) == 72
);

/// The gradient of the head and its bias, from what the forward pass left of the groups, and from the
/// inputs.
#[derive(Debug, Clone, Copy)]
pub struct LinearHeadGradient<'a> {
    rows: &'a LinearRows,
    shares: &'a LinearShares,
    element: Element,
    width: u32,
    shape: RowShape,
    room: Room,
    row_blocks: u32,
    token_threads: u32,
    token_blocks: u32,
}

/// What the pass reads and writes besides the inputs, in device memory. Addresses of buffers without
/// elements are not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinearHeadBuffers {
    /// [`LinearShares::shares`].
    pub shares: u64,
    /// [`LinearShares::tokens`].
    pub tokens: u64,
    /// [`LinearShares::starts`].
    pub starts: u64,
    /// The errors of the groups, which a forward pass with a gradient left in the place of its scores.
    pub scores: u64,
    /// [`LinearHeadGradient::scaled`] f32.
    pub scaled: u64,
    /// [`LinearHeadGradient::errors`] f32.
    pub errors: u64,
    /// [`LinearHeadGradient::products`] f32.
    pub products: u64,
    /// As the forward pass wrote it.
    pub temperature: u64,
    /// What the loss's gradient is, as many f32 as the loss has.
    pub upstream: u64,
    /// The gradient of the head `[V, H]`, which holds zeros, or 0 where it is not wanted.
    pub head: u64,
    /// The same of the bias `[V]`.
    pub bias: u64,
}

impl<'a> LinearHeadGradient<'a> {
    /// A pass over hidden states of `width` elements. `None` where no row has a loss.
    ///
    /// # Errors
    /// As [`LinearForward::new`](super::LinearForward::new).
    pub fn new(
        rows: &'a LinearRows,
        shares: &'a LinearShares,
        element: Element,
        width: usize,
        limits: &DeviceLimits,
    ) -> Result<Option<Self>> {
        let width = check_width(width)?;
        let shape = RowShape::new(rows, element, width, 0);
        let room = shape.loose_room(rows, limits);
        let of_rows = limits.resident_blocks(shape.threads, shape.shared_bytes(room));
        // A column more, for the bias.
        let packets = (width + 1).div_ceil(packet(element));
        let token_threads = packets.next_power_of_two().clamp(32, 256);
        let of_tokens = limits.resident_blocks(token_threads, 0);
        let plan = Self {
            rows,
            shares,
            element,
            width,
            shape,
            room,
            row_blocks: (rows.rows.len() as u32).clamp(1, of_rows.max(1)),
            token_threads,
            token_blocks: shares.tokens().clamp(1, of_tokens.max(1)),
        };
        Ok((shares.tokens() > 0).then_some(plan))
    }

    /// The f32 of the scaled hidden states.
    pub(super) fn scaled(&self) -> usize {
        self.rows.rows.len() * self.stride() as usize
    }

    /// How many errors the ragged rows have.
    pub(super) fn errors(&self) -> usize {
        self.rows.ragged_scores as usize
    }

    /// The f32 of the groups' products.
    pub(super) fn products(&self) -> usize {
        let tokens = match self.rows.vocabulary {
            Some(vocabulary) => vocabulary as usize,
            None => (self.rows.groups.iter())
                .map(|group| group.tokens as usize)
                .sum(),
        };
        tokens * self.stride() as usize
    }

    /// Launches and products of the pass, over listed sets.
    #[must_use]
    pub fn launches(&self) -> usize {
        2 + self.rows.groups.len()
    }

    /// Threads and bytes of shared memory of a block of the first launch, and of the last.
    #[must_use]
    pub fn block_shapes(&self) -> [[u32; 2]; 2] {
        let of_rows = [self.shape.threads, self.shape.shared_bytes(self.room)];
        [of_rows, [self.token_threads, 0]]
    }

    /// The first launch: the errors of the ragged rows, and the scaled hidden states.
    pub(super) fn errors_launch(
        &self,
        inputs: &LinearInputs,
        buffers: &LinearHeadBuffers,
    ) -> Launch<LinearErrorsParams> {
        let [[threads, shared_bytes], _] = self.block_shapes();
        Launch {
            kernel: match self.element {
                Element::F32 => "linear_errors_f32",
                Element::F16 => "linear_errors_f16",
                Element::Bf16 => "linear_errors_bf16",
            },
            grid: [self.row_blocks, 1, 1],
            block: [threads, 1, 1],
            shared_bytes,
            cooperative: false,
            params: LinearErrorsParams {
                batch: LinearBatch::new(self.rows, self.width, inputs),
                scale: GradientScale::new(self.rows, buffers.temperature, buffers.upstream),
                scaled: buffers.scaled,
                scaled_stride: self.stride(),
                errors: buffers.errors,
                tile_rows: self.room.tile_rows,
                keeps_hidden: self.room.keeps_hidden.into(),
            },
        }
    }

    /// Between the launches: what each token has of a group. (Of the whole vocabulary
    /// [`LinearChunks`](super::LinearChunks) makes them.)
    pub(super) fn group_products(
        &self,
        buffers: &LinearHeadBuffers,
    ) -> impl Iterator<Item = Product> {
        let (buffers, stride) = (*buffers, self.stride());
        let mut result = buffers.products;
        self.rows.groups.iter().map(move |group| {
            let product = Product {
                element: Element::F32,
                rows: group.tokens,
                columns: stride as u32,
                inner: group.rows,
                left: buffers.scores + 4 * group.scores,
                left_stride: group.stride.into(),
                left_transposed: true,
                right: buffers.scaled + 4 * u64::from(group.first) * stride,
                right_stride: stride,
                right_transposed: false,
                result,
                result_stride: stride,
                accumulates: false,
            };
            result += 4 * u64::from(group.tokens) * stride;
            product
        })
    }

    /// The last launch: the sums of the tokens.
    pub(super) fn launch(&self, buffers: &LinearHeadBuffers) -> Launch<LinearHeadGradientParams> {
        Launch {
            kernel: match self.element {
                Element::F32 => "linear_head_gradient_f32",
                Element::F16 => "linear_head_gradient_f16",
                Element::Bf16 => "linear_head_gradient_bf16",
            },
            grid: [self.token_blocks, 1, 1],
            block: [self.token_threads, 1, 1],
            shared_bytes: 0,
            cooperative: false,
            params: LinearHeadGradientParams {
                shares: buffers.shares,
                tokens: buffers.tokens,
                starts: match self.shares.whole {
                    Some(_) => 0,
                    None => buffers.starts,
                },
                scaled: buffers.scaled,
                products: buffers.products,
                stride: self.stride(),
                errors: buffers.errors,
                head: buffers.head,
                bias: buffers.bias,
                width: self.width,
                count: self.shares.tokens(),
            },
        }
    }

    /// Of scaled hidden states and products, whose last column is the bias's.
    fn stride(&self) -> u64 {
        Self::stride_of(self.width)
    }

    pub(super) fn stride_of(width: u32) -> u64 {
        gradient_stride(width + 1)
    }
}
