//! Plans for `kernels/linear_*.cu`: the loss over hidden states and a head.
//!
//! A forward pass is one launch, a backward pass another, the head's gradient, where it is wanted, a third.
//! Rows over the whole vocabulary (the plain language-model loss) come in chunks, so that their scores
//! take a bounded amount of memory.
//!
//! [`LinearPass`] issues all of it in order to whatever is a [`Queue`]: a stream of candle's or of cust's,
//! or the emulator.

mod head;
mod items;
mod params;
mod rows;

use bytemuck::{Zeroable, cast_slice};

use head::HeadTiles;
use items::{BlockShape, Chunk, Items};
use params::{
    GradientScale, LinearBackwardParams, LinearBatch, LinearForwardParams, LinearGroup,
    LinearHeadGradientParams, LinearItem,
};
pub use rows::LinearRows;

use super::{
    DeviceLimits, DevicePtr, Element, Launch, Lifetime, Queue, TemperaturePlan, TemperatureStep,
    WARP,
};
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

/// A batch over hidden states and a head, whose passes are issued to a [`Queue`].
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
    /// The f64 fields of [`Statistics`](crate::Statistics).
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

    /// Issues statistics, temperature, loss and, in a pass with gradient, what gradients are made of. All
    /// of the batch is uploaded in one piece, before any launch that a copy could wait for.
    ///
    /// # Safety
    /// The rows must name sets of `tensors.tokens` and ranks in them, and tokens of the head. The addresses
    /// must be of buffers of the sizes that are said there, on the device of `queue`, and live until what
    /// is issued is done, unread and unwritten by others.
    ///
    /// # Errors
    /// What `queue` says.
    pub unsafe fn forward<Q: Queue>(
        &self,
        queue: &mut Q,
        tensors: &LinearTensors,
        temperature: TemperaturePlan,
        results: &LinearResults,
    ) -> Result<LinearForwarded, Q::Error> {
        let (rows, items) = (&self.rows, &self.items);
        let (no_tiles, no_items) = (HeadTiles::default(), Items::default());
        let tiles = self.head_tiles.as_ref().unwrap_or(&no_tiles);
        let head_items = self.head_items.as_ref().unwrap_or(&no_items);
        let counters = vec![0; items.counters.max(head_items.counters) as usize];
        // Those with 64-bit fields first: each part begins where another ends.
        let [
            groups,
            head_groups,
            row_table,
            item_table,
            head_item_table,
            tables @ ..,
        ] = queue.upload([
            ("groups", cast_slice(&items.groups)),
            ("head groups", cast_slice(&head_items.groups)),
            ("rows", cast_slice(&rows.rows)),
            ("items", cast_slice(&items.items)),
            ("head items", cast_slice(&head_items.items)),
            ("segments", cast_slice(&tiles.segments)),
            ("segment starts", &tiles.starts),
            ("head tokens", &tiles.tokens),
            ("ignored", &rows.ignored),
            ("counters", &counters),
        ])?;
        let [segments, starts, head_tokens, ignored, counters] = tables;
        let only = |wanted: bool, bytes: usize| if wanted { bytes } else { 0 };
        let count = rows.rows.len();
        let of_scores = items.scores as usize * size_of::<f32>();
        let of_softmaxes = count * 3 * size_of::<f32>();
        let unscaled = count * self.gradient_stride() as usize * size_of::<f32>();
        let keeps_softmaxes = self.head_tiles.is_some() || self.head_items.is_some();
        let [gradient, kept_scores, kept_softmaxes] = queue.allocate(
            Lifetime::Kept,
            [
                ("unscaled", only(self.unscaled, unscaled)),
                ("kept scores", only(self.head_tiles.is_some(), of_scores)),
                ("kept softmaxes", only(keeps_softmaxes, of_softmaxes)),
            ],
        )?;
        let [scores, softmaxes, row_losses] = queue.allocate(
            Lifetime::Scratch,
            [
                ("scores", only(self.head_tiles.is_none(), of_scores)),
                ("softmaxes", only(!keeps_softmaxes, of_softmaxes)),
                ("row losses", count * size_of::<f64>()),
            ],
        )?;
        let [records, targets, partials] = self.allocate_scores(queue, items)?;
        let params = LinearForwardParams {
            batch: LinearBatch {
                hidden: tensors.hidden,
                hidden_stride: tensors.hidden_stride,
                head: Some(tensors.head),
                head_stride: tensors.head_stride,
                bias: tensors.bias,
                rows: row_table,
                groups,
                tokens: tensors.tokens,
                ignored,
                row_count: count as u32,
                ignored_count: rows.ignored.len() as u32,
                width: self.width,
                unused: 0,
            },
            score_items: item_table,
            gradient_items: item_table,
            scores: scores.or(kept_scores),
            records,
            targets,
            softmaxes: softmaxes.or(kept_softmaxes),
            row_losses,
            partials,
            counters,
            gradient,
            gradient_stride: self.gradient_stride(),
            hidden_gradient: results.hidden_gradient,
            losses: (!rows.reduced).then_some(results.loss),
            loss: rows.reduced.then_some(results.loss),
            statistics: Some(results.statistics),
            temperature: Some(results.temperature),
            previous: tensors.previous.filter(|_| temperature.continues),
            given: temperature.given,
            step: temperature.step.unwrap_or(TemperatureStep::zeroed()),
            sizes: rows.statistics_sizes(),
            stage_bytes: self.shape.stage_bytes,
            adapts: temperature.adapts().into(),
            times_temperature: rows.times_temperature.into(),
            ..LinearForwardParams::zeroed()
        };
        for (chunk, params) in self.forward_launches(params) {
            // SAFETY: the parameters are the plan's, and the buffers have the sizes that it asks for; for
            // those of the caller, the caller answers.
            unsafe { self.issue(queue, chunk, params) }?;
        }
        Ok(LinearForwarded {
            params,
            head_tables: [head_groups, head_item_table, segments, starts, head_tokens],
        })
    }

    /// What is launched in a forward pass: one chunk, but for rows over the whole vocabulary. Where all
    /// chunks must wait for the statistics of all, their scores are made twice.
    fn forward_launches(
        &self,
        params: LinearForwardParams,
    ) -> impl Iterator<Item = (&Chunk, LinearForwardParams)> {
        let chunks = &self.items.chunks;
        let twice = params.adapts != 0 && chunks.len() > 1;
        let first_time = LinearForwardParams {
            scores_only: twice.into(),
            ..params
        };
        let second_time = LinearForwardParams {
            previous: params.temperature,
            statistics: None,
            adapts: 0,
            ..params
        };
        let of_chunks = move |params: LinearForwardParams| {
            let last = chunks.len() - 1;
            (chunks.iter().enumerate()).map(move |(index, chunk)| match index == last {
                true => (chunk, params),
                // Others are still to come.
                false => (chunk, unfinished(params)),
            })
        };
        let again = twice.then(|| of_chunks(second_time));
        of_chunks(first_time).chain(again.into_iter().flatten())
    }

    /// Issues a cooperative launch of one block for each piece of work, or as many as are resident.
    ///
    /// # Safety
    /// As [`Queue::launch`].
    unsafe fn issue<Q: Queue>(
        &self,
        queue: &mut Q,
        chunk: &Chunk,
        params: LinearForwardParams,
    ) -> Result<(), Q::Error> {
        let part = |items: Option<DevicePtr>, first: usize, count: usize| {
            items
                .filter(|_| count > 0)
                .map(|items| items.add((first * size_of::<LinearItem>()) as u64))
        };
        let gradients = if params.scores_only == 0 {
            chunk.gradients.len()
        } else {
            0
        };
        let mut launch = Launch {
            kernel: LinearForwardParams::KERNEL.name(self.element),
            grid: [chunk.scores.len().max(gradients).max(1) as u32, 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: self.shape.shared_bytes,
            cooperative: true,
            params: LinearForwardParams {
                score_items: part(params.score_items, chunk.scores.start, chunk.scores.len()),
                gradient_items: part(params.gradient_items, chunk.gradients.start, gradients),
                score_count: chunk.scores.len() as u32,
                gradient_count: gradients as u32,
                ..params
            },
        };
        let resident = queue.resident_blocks(&launch)?.unwrap_or(self.shape.blocks);
        launch.grid[0] = launch.grid[0].min(resident.max(1));
        // SAFETY: the caller's promise.
        unsafe { queue.launch(&launch) }
    }

    /// Records, targets and partial sums of launches over these items.
    fn allocate_scores<Q: Queue>(
        &self,
        queue: &mut Q,
        items: &Items,
    ) -> Result<[Option<DevicePtr>; 3], Q::Error> {
        queue.allocate(
            Lifetime::Scratch,
            [
                ("records", items.records as usize * 16),
                ("targets", self.rows.rows.len() * size_of::<f32>()),
                ("partials", items.partials as usize * 16),
            ],
        )
    }

    /// Issues the gradient of the hidden states `[N, H]`, which a pass with
    /// [`LinearGradients::Hidden`] or [`All`](LinearGradients::All) has prepared.
    ///
    /// # Safety
    /// `forwarded` must be of this pass and still kept, and the addresses of such buffers, as in
    /// [`forward`](Self::forward).
    ///
    /// # Errors
    /// What `queue` says.
    pub unsafe fn hidden_gradient<Q: Queue>(
        &self,
        queue: &mut Q,
        forwarded: &LinearForwarded,
        upstream: LinearUpstream,
        gradient: DevicePtr,
    ) -> Result<(), Q::Error> {
        let params = &forwarded.params;
        let work = params.batch.row_count + params.batch.ignored_count;
        if work == 0 {
            return Ok(());
        }
        let kernel = LinearBackwardParams::KERNEL;
        let resident = self.limits.resident_blocks(&kernel, THREADS, 0).max(1);
        let launch = Launch {
            kernel: kernel.name(self.element),
            grid: [work.div_ceil(THREADS / WARP).min(resident), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
            cooperative: false,
            params: LinearBackwardParams {
                rows: params.batch.rows,
                ignored: params.batch.ignored,
                unscaled: params.gradient,
                unscaled_stride: params.gradient_stride,
                gradient: Some(gradient),
                scale: self.scale(upstream),
                width: self.width,
                row_count: params.batch.row_count,
                ignored_count: params.batch.ignored_count,
                unused: 0,
            },
        };
        // SAFETY: as in `forward`.
        unsafe { queue.launch(&launch) }
    }

    /// Issues the gradients of the head `[V, H]` and of its bias `[V]`, each over zeros, where they are
    /// wanted.
    ///
    /// # Safety
    /// As [`hidden_gradient`](Self::hidden_gradient); hidden states, head and bias of the forward pass must
    /// be where they were.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a pass without [`LinearGradients::All`], and what `queue` says.
    pub unsafe fn head_gradient<Q: Queue>(
        &self,
        queue: &mut Q,
        forwarded: &LinearForwarded,
        upstream: LinearUpstream,
        [head, bias]: [Option<DevicePtr>; 2],
    ) -> Result<(), Q::Error> {
        let [groups, items, segments, starts, tokens] = forwarded.head_tables;
        let params = LinearHeadGradientParams {
            batch: forwarded.params.batch,
            scale: self.scale(upstream),
            scores: forwarded.params.scores,
            softmaxes: forwarded.params.softmaxes,
            segments,
            starts,
            tokens,
            head,
            bias,
            ..LinearHeadGradientParams::zeroed()
        };
        if let Some(tiles) = &self.head_tiles {
            let count = tiles.tokens.len() as u32;
            // SAFETY: as in `forward`.
            return unsafe { self.sum_head(queue, LinearHeadGradientParams { count, ..params }) };
        }
        let by_tokens = self.head_items.as_ref().ok_or_else(|| Error::Malformed {
            what: "pass",
            detail: "it was planned without the head's gradient".into(),
        })?;
        let of_scores = by_tokens.scores as usize * size_of::<f32>();
        let [scores] = queue.allocate(Lifetime::Scratch, [("scores", of_scores)])?;
        let [records, targets, partials] = self.allocate_scores(queue, by_tokens)?;
        let mut again = LinearForwardParams {
            score_items: items,
            scores,
            records,
            targets,
            partials,
            statistics: None,
            scores_only: 1,
            ..forwarded.params
        };
        again.batch.groups = groups;
        for (index, chunk) in by_tokens.chunks.iter().enumerate() {
            let group = (index * size_of::<LinearGroup>()) as u64;
            let mut params = LinearHeadGradientParams {
                scores,
                count: by_tokens.groups[index].tokens,
                ..params
            };
            // The kernel takes the first group that it sees.
            params.batch.groups = groups.map(|groups| groups.add(group));
            // SAFETY: as in `forward`.
            unsafe {
                self.issue(queue, chunk, again)?;
                self.sum_head(queue, params)?;
            }
        }
        Ok(())
    }

    /// Issues the sums of the head's gradient, as far as `params` say.
    ///
    /// # Safety
    /// As [`Queue::launch`].
    unsafe fn sum_head<Q: Queue>(
        &self,
        queue: &mut Q,
        params: LinearHeadGradientParams,
    ) -> Result<(), Q::Error> {
        let tiles = params.count.div_ceil(HeadTiles::TOKENS as u32);
        let tiles = tiles.saturating_mul(self.width.div_ceil(HeadTiles::COLUMNS));
        if tiles == 0 {
            return Ok(());
        }
        let (kernel, shared_bytes) = (LinearHeadGradientParams::KERNEL, HeadTiles::SHARED_BYTES);
        let resident = self.limits.resident_blocks(&kernel, THREADS, shared_bytes);
        let launch = Launch {
            kernel: kernel.name(self.element),
            grid: [tiles.min(resident.max(1)), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes,
            cooperative: false,
            params,
        };
        // SAFETY: the caller's promise.
        unsafe { queue.launch(&launch) }
    }

    /// How far apart the unscaled gradients of rows are, in f32: whole packets of every type.
    fn gradient_stride(&self) -> u64 {
        u64::from(self.width).next_multiple_of(8)
    }

    fn scale(&self, upstream: LinearUpstream) -> GradientScale {
        GradientScale {
            temperature: Some(upstream.temperature),
            upstream: Some(upstream.loss),
            upstream_by_position: (!self.rows.reduced).into(),
            times_temperature: self.rows.times_temperature.into(),
        }
    }
}

/// The same for a launch with others behind it, which settle and add up what all have left.
fn unfinished(mut params: LinearForwardParams) -> LinearForwardParams {
    (params.statistics, params.loss) = (None, None);
    params.batch.ignored_count = 0;
    params
}
