//! The launch plan of the loss over hidden states and a head: `kernels/linear_*.cu`.
//!
//! A forward pass is one launch, a backward pass another, and the gradient of the head, if it is wanted, a third. Rows over the
//! whole vocabulary (the plain language-model loss) are processed in chunks with a launch each, so that the memory for their
//! scores is bounded.

mod backward;
mod forward;
mod head;
mod items;
mod params;
mod rows;

use head::HeadTiles;
use items::{BlockShape, Items};
use params::LinearForwardParams;
pub use rows::LinearRows;

use super::{DeviceLimits, DeviceMatrix, DevicePtr, Element, TokenSetsView};
use crate::error::check_numbered;
use crate::{Error, Result, TokenSets};

/// The gradients that a forward pass computes or prepares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearGradients<'a> {
    /// No gradient is wanted.
    None,
    /// The forward pass writes the gradient of the hidden states, for an upstream gradient of 1.
    Direct,
    /// A backward pass writes the gradient of the hidden states.
    Hidden,
    /// Backward passes write the gradients of hidden states, head and bias. The token sets are those that the rows were made
    /// with.
    All(&'a TokenSets),
    /// Backward passes write the gradients of hidden states and of the added rows of a head in two parts.
    AddedRows {
        /// The token sets that the rows were made with.
        sets: &'a TokenSets,
        /// The first added token, which is the number of rows of [`LinearTensors::base`].
        first_token: u32,
    },
}

/// A plan for the loss over one batch of hidden states `[N, H]` and a head `[V, H]`, whose passes are issued to a
/// [`Stream`](super::Stream).
#[derive(Debug, Clone)]
pub struct LinearPlan {
    rows: LinearRows,
    element: Element,
    width: u32,
    limits: DeviceLimits,
    shape: BlockShape,
    items: Items,
    /// Whether the forward pass saves the gradient of the hidden states, unscaled.
    unscaled: bool,
    /// The first token whose row takes a gradient; `None` if the plan is without the gradient of the head.
    first_trained: Option<u32>,
    /// The inverted index for the gradient of the head over listed sets, which is computed from the scores of the forward pass.
    head_tiles: Option<HeadTiles>,
    /// The items for the gradient of the head over the whole vocabulary, for which scores are computed again in chunks of
    /// tokens.
    head_items: Option<Items>,
}

/// The inputs of a forward pass in device memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearTensors {
    /// The hidden states `[N, H]`.
    pub hidden: DeviceMatrix,
    /// The head `[V, H]` or, of a head in two parts, the added rows `[V′, H]`.
    pub head: DeviceMatrix,
    /// The frozen rows before the added ones; `None` for a head in one part.
    pub base: Option<HeadBase>,
    /// The bias `[V]`; `None` if the head has none.
    pub bias: Option<DevicePtr>,
    /// The token sets that the rows name.
    pub sets: TokenSetsView,
    /// The temperature before the pass, one f64; `None` if it is not on the device.
    pub previous: Option<DevicePtr>,
}

/// The frozen rows of a head in two parts, in device memory. Added rows follow them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadBase {
    /// The rows `[rows, H]`.
    pub matrix: DeviceMatrix,
    /// The number of rows, which is the first added token.
    pub rows: u32,
}

/// What a forward pass saves for the gradients, in kept memory of its stream.
#[derive(Debug, Clone, Copy)]
pub struct LinearSaved {
    params: LinearForwardParams,
    /// The tables of the gradient of the head: groups and items over the whole vocabulary, and segments, their starts and the
    /// distinct tokens over listed sets. `None` for those that the plan does not need.
    head_tables: [Option<DevicePtr>; 5],
}

impl LinearSaved {
    /// Returns the same, with hidden states, head and bias of the forward pass at other places.
    pub(crate) fn with_inputs(
        mut self,
        [hidden, head]: [DeviceMatrix; 2],
        bias: Option<DevicePtr>,
    ) -> Self {
        let batch = &mut self.params.batch;
        (batch.hidden, batch.hidden_stride) = (hidden.address, hidden.row_stride);
        (batch.head, batch.head_stride) = (head.address, head.row_stride);
        batch.bias = bias;
        self
    }
}

/// An item of work of a forward pass, which one block processes. Figures in docs/kernels.md are computed from these.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearWork {
    /// The number of rows, all of one token set.
    pub rows: u32,
    /// The number of tokens whose scores it computes, or of columns of the gradient.
    pub columns: u32,
    /// The number of terms of each sum: elements of a hidden state, or tokens.
    pub terms: u32,
    /// The index of the split-K slice.
    pub slice: u32,
    /// The number of split-K slices of the sum.
    pub slices: u32,
}

/// The threads of a block in every launch.
const THREADS: u32 = 256;

/// Refuses a width of 0 and one beyond 2²⁴, so that no product of a width and a tile's size overflows 32 bits in the kernels.
fn check_width(width: usize) -> Result<u32> {
    let limit = 1 << 24;
    match u32::try_from(width) {
        Ok(0) => Err(Error::Unsupported {
            what: "hidden states",
            expected: "a width of at least 1".into(),
            actual: "a width of 0".into(),
        }),
        Ok(width) if width <= limit => Ok(width),
        _ => Err(Error::TooLarge {
            what: "width of the hidden states",
            size: width as u64,
            limit: u64::from(limit),
        }),
    }
}

impl LinearPlan {
    /// The default of `most_scores` in [`new`](Self::new): 128 MiB of f32.
    pub const MOST_SCORES: usize = 1 << 25;

    /// Plans passes over hidden states of `width` elements. Over the whole vocabulary, at most `most_scores` scores are in
    /// memory at a time (by default [`MOST_SCORES`](Self::MOST_SCORES)).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a width of 0 or a device with too little shared memory, and
    /// [`Error::TooLarge`] for a width beyond 2²⁴, and for rows whose partial sums take more than 64 GiB.
    pub fn new(
        rows: LinearRows,
        element: Element,
        width: usize,
        gradients: LinearGradients,
        limits: &DeviceLimits,
        most_scores: usize,
    ) -> Result<Self> {
        let width = check_width(width)?;
        let shape = BlockShape::new(limits)?;
        let gradient = gradients != LinearGradients::None;
        let by_tokens =
            |first_token| Items::by_tokens(&rows, first_token, element, width, most_scores, &shape);
        let head_over = match gradients {
            LinearGradients::All(sets) => Some((sets, 0)),
            LinearGradients::AddedRows { sets, first_token } => Some((sets, first_token)),
            _ => None,
        };
        let items = Items::new(&rows, element, width, gradient, most_scores, &shape);
        let head_items = head_over
            .filter(|_| rows.is_whole_vocabulary)
            .map(|(_, first_token)| by_tokens(first_token));
        for items in [Some(&items), head_items.as_ref()].into_iter().flatten() {
            let packets = items.partials as usize;
            check_numbered("packets of 16 bytes for partial sums", packets)?;
        }
        Ok(Self {
            items,
            head_items,
            head_tiles: (head_over.filter(|_| !rows.is_whole_vocabulary))
                .map(|(sets, first_token)| HeadTiles::new(&rows, sets, first_token)),
            first_trained: head_over.map(|(_, first_token)| first_token),
            rows,
            element,
            width,
            limits: *limits,
            shape,
            unscaled: gradient && gradients != LinearGradients::Direct,
        })
    }

    /// Returns the rows of the batch.
    #[must_use]
    pub fn rows(&self) -> &LinearRows {
        &self.rows
    }

    /// Returns the items of a chunk of rows in the order in which blocks process them: those that compute scores, and those
    /// that compute the gradient.
    #[doc(hidden)]
    #[must_use]
    pub fn work(&self, chunk: usize) -> [Vec<LinearWork>; 2] {
        let chunk = &self.items.chunks[chunk];
        [&chunk.scores, &chunk.gradients].map(|items| {
            let items = self.items.items[items.clone()].iter();
            let work = items.map(|item| LinearWork {
                rows: item.rows,
                columns: item.count,
                terms: item.inner_count,
                slice: item.slice,
                slices: item.slices,
            });
            work.collect()
        })
    }

    /// Returns the number of launches of a forward pass. `adapts` says whether the temperature depends on the statistics.
    #[must_use]
    pub fn forward_launches_count(&self, adapts: bool) -> usize {
        let chunks = self.items.chunks.len();
        let waits = adapts || self.rows.totals.beam_weights.is_enabled();
        if waits && chunks > 1 {
            2 * chunks
        } else {
            chunks
        }
    }

    /// Returns the row stride of the unscaled gradient, in f32: a multiple of the packets of every element type.
    fn gradient_stride(&self) -> u64 {
        u64::from(self.width).next_multiple_of(8)
    }
}
