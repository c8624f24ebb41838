//! Plans for `kernels/linear_*.cu`: the loss over hidden states and a head.
//!
//! A forward pass is one launch, a backward pass another, the head's gradient, where it is wanted, a third.
//! Rows over the whole vocabulary (the plain language-model loss) come in chunks, so that their scores
//! take a bounded amount of memory.
//!
//! [`LinearPass`] issues all of it in order to whatever is a [`Queue`](super::Queue): a stream of candle's or of cust's,
//! or the emulator.

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

use super::{DeviceLimits, DevicePtr, Element};
use crate::{Error, Result, TokenSets};

/// Which gradients a pass prepares or makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearGradients<'a> {
    /// None.
    None,
    /// That of the hidden states, by the forward pass itself, for an upstream gradient of 1.
    Direct,
    /// That of the hidden states, by a backward pass.
    Hidden,
    /// Those of hidden states, head and bias, by backward passes. The token sets are those that the rows
    /// were made with.
    All(&'a TokenSets),
}

/// A batch over hidden states and a head, whose passes are issued to a [`Queue`](super::Queue).
#[derive(Debug, Clone)]
pub struct LinearPass {
    rows: LinearRows,
    element: Element,
    width: u32,
    limits: DeviceLimits,
    shape: BlockShape,
    items: Items,
    /// Whether the forward pass leaves the hidden gradient, unscaled.
    unscaled: bool,
    /// For the head's gradient over listed sets, which uses the scores of the forward pass.
    head_tiles: Option<HeadTiles>,
    /// For that over the whole vocabulary, whose scores are made once more, some tokens at a time.
    head_items: Option<Items>,
}

/// What the caller has in device memory. Strides are elements between the beginnings of two rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearTensors {
    /// The hidden states `[N, H]`; `None` where N is 0.
    pub hidden: Option<DevicePtr>,
    /// Of the hidden states.
    pub hidden_stride: u64,
    /// The head `[V, H]`.
    pub head: DevicePtr,
    /// Of the head.
    pub head_stride: u64,
    /// The bias `[V]`.
    pub bias: Option<DevicePtr>,
    /// The u32 tokens of all token sets; `None` for the whole vocabulary.
    pub tokens: Option<DevicePtr>,
    /// One f64: the temperature so far, where it is on the device.
    pub previous: Option<DevicePtr>,
}

/// What a forward pass writes for the caller, in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearResults {
    /// [`LinearRows::losses`] f32.
    pub loss: DevicePtr,
    /// The f64 fields of [`Statistics`](crate::Statistics) and, under BEAR, behind them the sum of the rows' weights.
    pub statistics: DevicePtr,
    /// One f64: the temperature that was used.
    pub temperature: DevicePtr,
    /// The gradient of the hidden states `[N, H]`, under [`LinearGradients::Direct`].
    pub hidden_gradient: Option<DevicePtr>,
}

/// What a gradient goes on from, in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearUpstream {
    /// What the loss's gradient is, as many f32 as the loss has.
    pub loss: DevicePtr,
    /// As the forward pass wrote it.
    pub temperature: DevicePtr,
}

/// A forward pass that has been issued: where its queue keeps what gradients need.
#[derive(Debug, Clone, Copy)]
pub struct LinearForwarded {
    params: LinearForwardParams,
    /// Groups and items of the whole vocabulary; segments, their starts and tokens of listed sets.
    head_tables: [Option<DevicePtr>; 5],
}

/// A piece of work of a forward pass, of which a block takes one after the other: what figures are computed from.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearWork {
    /// Rows, all of one token set.
    pub rows: u32,
    /// Tokens whose scores are made, or columns of the gradient.
    pub columns: u32,
    /// What each of them is a sum over: elements of a hidden state, or tokens.
    pub terms: u32,
    /// Which of how many parts of the sum it is.
    pub slice: u32,
    pub slices: u32,
}

/// Threads of a block, in every launch.
const THREADS: u32 = 256;

/// The kernels count the elements of a row in 32 bits, packets in fewer.
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

impl LinearPass {
    /// Scores over the whole vocabulary that are in memory at a time: 128 MiB of f32.
    pub const MOST_SCORES: usize = 1 << 25;

    /// Plans passes over hidden states of `width` elements, with `most_scores` over the whole vocabulary
    /// in memory at a time ([`MOST_SCORES`](Self::MOST_SCORES)).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a width of 0 or a device with too little shared memory, and
    /// [`Error::TooLarge`] for a width beyond 2²⁴.
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
        let by_tokens = || Items::by_tokens(&rows, element, width, most_scores, &shape);
        let head_over = match gradients {
            LinearGradients::All(sets) => Some(sets),
            _ => None,
        };
        Ok(Self {
            items: Items::new(&rows, element, width, gradient, most_scores, &shape),
            head_items: head_over.filter(|_| rows.is_whole).map(|_| by_tokens()),
            head_tiles: (head_over.filter(|_| !rows.is_whole))
                .map(|sets| HeadTiles::new(&rows, sets)),
            rows,
            element,
            width,
            limits: *limits,
            shape,
            unscaled: gradient && gradients != LinearGradients::Direct,
        })
    }

    /// The rows of the batch.
    #[must_use]
    pub fn rows(&self) -> &LinearRows {
        &self.rows
    }

    /// The pieces of work of a chunk of rows, in the order in which blocks take them: those that make scores, and those that make the
    /// gradient.
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

    /// How many launches a forward pass takes at a temperature that is known, or that waits for statistics.
    #[must_use]
    pub fn forward_launches_count(&self, adapts: bool) -> usize {
        let chunks = self.items.chunks.len();
        if adapts && chunks > 1 {
            2 * chunks
        } else {
            chunks
        }
    }

    /// How far apart the unscaled gradients of rows are, in f32: whole packets of every type.
    fn gradient_stride(&self) -> u64 {
        u64::from(self.width).next_multiple_of(8)
    }
}
