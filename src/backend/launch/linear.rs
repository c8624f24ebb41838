//! Plans for `kernels/linear_*.cu`: the loss over hidden states and a head.
//!
//! A forward pass is one launch, a backward pass another, the head's gradient, where it is wanted, a third.
//! Rows over the whole vocabulary (the plain language-model loss) come in chunks, so that their scores
//! take a bounded amount of memory.
//!
//! [`LinearPass`] issues all of it in order to whatever is a [`Queue`]: a stream of candle's or of cust's,
//! or the emulator.

mod backward;
mod forward;
mod head;
mod items;
mod rows;

use bytemuck::Zeroable;

use backward::LinearHeadGradientParams;
use forward::{ForwardBuffers, LinearForwardParams};
use head::HeadTiles;
use items::{BlockShape, Items, LinearGroup};
pub use rows::LinearRows;

use super::kernel_params::kernel_params;
use super::{DeviceLimits, DevicePtr, Element, Launch, Lifetime, Queue, TemperaturePlan};
use crate::{Error, Result, TokenSets};

kernel_params! {
    /// Hidden states, head and rows.
    struct LinearBatch in "linear.cuh" {
        hidden: Option<DevicePtr>,
        hidden_stride: u64,
        head: Option<DevicePtr>,
        head_stride: u64,
        bias: Option<DevicePtr>,
        rows: Option<DevicePtr>,
        groups: Option<DevicePtr>,
        tokens: Option<DevicePtr>,
        ignored: Option<DevicePtr>,
        row_count: u32,
        ignored_count: u32,
        width: u32,
        unused: u32,
    }
}

kernel_params! {
    /// What the unscaled gradient is multiplied by.
    struct GradientScale in "linear.cuh" {
        temperature: Option<DevicePtr>,
        upstream: Option<DevicePtr>,
        upstream_by_position: u32,
        times_temperature: u32,
    }
}

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
    head: Option<HeadPlan>,
}

/// How the head's gradient is made.
#[derive(Debug, Clone)]
enum HeadPlan {
    /// By the scores of the forward pass.
    Listed(HeadTiles),
    /// Over the whole vocabulary, by scores that are made once more, some tokens at a time.
    Whole(Items),
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
    uploaded: Uploaded,
    unscaled: Option<DevicePtr>,
    scores: Option<DevicePtr>,
    softmaxes: Option<DevicePtr>,
}

/// The tables of a batch.
#[derive(Debug, Clone, Copy)]
struct Uploaded {
    rows: Option<DevicePtr>,
    groups: Option<DevicePtr>,
    items: Option<DevicePtr>,
    ignored: Option<DevicePtr>,
    counters: Option<DevicePtr>,
    /// Of the head's gradient: groups and items of the whole vocabulary, or segments, their starts and tokens.
    head_groups: Option<DevicePtr>,
    head_items: Option<DevicePtr>,
    segments: Option<DevicePtr>,
    starts: Option<DevicePtr>,
    head_tokens: Option<DevicePtr>,
}

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
        Ok(Self {
            items: Items::new(&rows, element, width, gradient, most_scores, &shape),
            head: match gradients {
                LinearGradients::All(_) if rows.is_whole => {
                    let items = Items::by_tokens(&rows, element, width, most_scores, &shape);
                    Some(HeadPlan::Whole(items))
                }
                LinearGradients::All(sets) => Some(HeadPlan::Listed(HeadTiles::new(&rows, sets))),
                _ => None,
            },
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
        let uploaded = self.upload(queue)?;
        let (rows, items) = (self.rows.rows.len(), &self.items);
        let keeps_scores = matches!(self.head, Some(HeadPlan::Listed(_)));
        let only = |wanted: bool, bytes: usize| if wanted { bytes } else { 0 };
        let unscaled = rows * self.gradient_stride() as usize * size_of::<f32>();
        let of_scores = items.scores as usize * size_of::<f32>();
        let of_softmaxes = rows * 3 * size_of::<f32>();
        let [unscaled, kept_scores, kept_softmaxes] = queue.allocate(
            Lifetime::Kept,
            [
                ("unscaled", only(self.unscaled, unscaled)),
                ("kept scores", only(keeps_scores, of_scores)),
                ("kept softmaxes", only(self.head.is_some(), of_softmaxes)),
            ],
        )?;
        let [scores, softmaxes, records, row_losses, targets, partials] = queue.allocate(
            Lifetime::Scratch,
            [
                ("scores", only(!keeps_scores, of_scores)),
                ("softmaxes", only(self.head.is_none(), of_softmaxes)),
                ("records", items.records as usize * 16),
                ("row losses", rows * size_of::<f64>()),
                ("targets", rows * size_of::<f32>()),
                ("partials", items.partials as usize * 16),
            ],
        )?;
        let buffers = ForwardBuffers {
            items: uploaded.items,
            scores: scores.or(kept_scores),
            records,
            targets,
            softmaxes: softmaxes.or(kept_softmaxes),
            row_losses,
            partials,
            counters: uploaded.counters,
            gradient: unscaled,
        };
        let batch = self.batch(tensors, &uploaded);
        let previous = tensors.previous;
        for launch in self.forward_launches(&batch, &buffers, temperature, previous, results) {
            // SAFETY: the parameters are the plan's, and the buffers have the sizes that it asks for; for
            // those of the caller, the caller answers.
            unsafe { self.issue(queue, launch) }?;
        }
        Ok(LinearForwarded {
            uploaded,
            unscaled,
            scores: kept_scores,
            softmaxes: kept_softmaxes,
        })
    }

    /// Issues the gradient of the hidden states `[N, H]`, which a pass with
    /// [`LinearGradients::Hidden`] or [`All`](LinearGradients::All) has prepared.
    ///
    /// # Safety
    /// `forwarded` must be of this pass and still kept, `tensors` those of the forward pass, and the
    /// addresses of such buffers, as in [`forward`](Self::forward).
    ///
    /// # Errors
    /// What `queue` says.
    pub unsafe fn hidden_gradient<Q: Queue>(
        &self,
        queue: &mut Q,
        forwarded: &LinearForwarded,
        tensors: &LinearTensors,
        upstream: LinearUpstream,
        gradient: DevicePtr,
    ) -> Result<(), Q::Error> {
        let batch = self.batch(tensors, &forwarded.uploaded);
        let scale = self.scale(upstream);
        match self.backward_launch(&batch, scale, forwarded.unscaled, gradient) {
            // SAFETY: as in `forward`.
            Some(launch) => unsafe { queue.launch(&launch) },
            None => Ok(()),
        }
    }

    /// Issues the gradients of the head `[V, H]` and of its bias `[V]`, each over zeros, where they are
    /// wanted.
    ///
    /// # Safety
    /// As [`hidden_gradient`](Self::hidden_gradient).
    ///
    /// # Errors
    /// [`Error::Malformed`] for a pass without [`LinearGradients::All`], and what `queue` says.
    pub unsafe fn head_gradient<Q: Queue>(
        &self,
        queue: &mut Q,
        forwarded: &LinearForwarded,
        tensors: &LinearTensors,
        upstream: LinearUpstream,
        [head, bias]: [Option<DevicePtr>; 2],
    ) -> Result<(), Q::Error> {
        let uploaded = &forwarded.uploaded;
        let params = LinearHeadGradientParams {
            batch: self.batch(tensors, uploaded),
            scale: self.scale(upstream),
            scores: forwarded.scores,
            softmaxes: forwarded.softmaxes,
            segments: uploaded.segments,
            starts: uploaded.starts,
            tokens: uploaded.head_tokens,
            head,
            bias,
            ..LinearHeadGradientParams::zeroed()
        };
        match &self.head {
            None => Err(Error::Malformed {
                what: "pass",
                detail: "it was planned without the head's gradient".into(),
            })?,
            Some(HeadPlan::Listed(tiles)) => {
                let count = tiles.tokens.len() as u32;
                let launch = self.head_launch(LinearHeadGradientParams { count, ..params });
                // SAFETY: as in `forward`.
                launch.map_or(Ok(()), |launch| unsafe { queue.launch(&launch) })
            }
            // SAFETY: as in `forward`.
            Some(HeadPlan::Whole(items)) => unsafe {
                self.head_gradient_by_tokens(queue, uploaded, items, params)
            },
        }
    }

    /// # Safety
    /// As [`head_gradient`](Self::head_gradient).
    unsafe fn head_gradient_by_tokens<Q: Queue>(
        &self,
        queue: &mut Q,
        uploaded: &Uploaded,
        items: &Items,
        params: LinearHeadGradientParams,
    ) -> Result<(), Q::Error> {
        let [scores, records, targets, partials] = queue.allocate(
            Lifetime::Scratch,
            [
                ("scores", items.scores as usize * size_of::<f32>()),
                ("records", items.records as usize * 16),
                ("targets", self.rows.rows.len() * size_of::<f32>()),
                ("partials", items.partials as usize * 16),
            ],
        )?;
        let buffers = ForwardBuffers {
            items: uploaded.head_items,
            scores,
            records,
            targets,
            softmaxes: None,
            row_losses: None,
            partials,
            counters: uploaded.counters,
            gradient: None,
        };
        for (index, chunk) in items.chunks.iter().enumerate() {
            let with = |groups| LinearBatch {
                groups,
                ..params.batch
            };
            let groups = uploaded.head_groups;
            let scores_launch = self.score_launch(chunk, &with(groups), &buffers);
            // The kernel takes the first group that it sees.
            let group = (index * size_of::<LinearGroup>()) as u64;
            let launch = self.head_launch(LinearHeadGradientParams {
                batch: with(groups.map(|groups| groups.add(group))),
                scores,
                count: items.groups[index].tokens,
                ..params
            });
            // SAFETY: as in `forward`.
            unsafe {
                self.issue(queue, scores_launch)?;
                launch.map_or(Ok(()), |launch| queue.launch(&launch))?;
            }
        }
        Ok(())
    }

    /// Issues a cooperative launch of one block for each piece of work, or as many as are resident.
    ///
    /// # Safety
    /// As [`Queue::launch`].
    unsafe fn issue<Q: Queue>(
        &self,
        queue: &mut Q,
        mut launch: Launch<LinearForwardParams>,
    ) -> Result<(), Q::Error> {
        let resident = queue.resident_blocks(&launch)?.unwrap_or(self.shape.blocks);
        launch.grid[0] = launch.grid[0].min(resident.max(1));
        // SAFETY: the caller's promise.
        unsafe { queue.launch(&launch) }
    }

    /// How far apart the unscaled gradients of rows are, in f32: whole packets of every type.
    fn gradient_stride(&self) -> u64 {
        u64::from(self.width).next_multiple_of(8)
    }

    fn batch(&self, tensors: &LinearTensors, uploaded: &Uploaded) -> LinearBatch {
        LinearBatch {
            hidden: tensors.hidden,
            hidden_stride: tensors.hidden_stride,
            head: Some(tensors.head),
            head_stride: tensors.head_stride,
            bias: tensors.bias,
            rows: uploaded.rows,
            groups: uploaded.groups,
            tokens: tensors.tokens,
            ignored: uploaded.ignored,
            row_count: self.rows.rows.len() as u32,
            ignored_count: self.rows.ignored.len() as u32,
            width: self.width,
            unused: 0,
        }
    }

    fn scale(&self, upstream: LinearUpstream) -> GradientScale {
        GradientScale {
            temperature: Some(upstream.temperature),
            upstream: Some(upstream.loss),
            upstream_by_position: (!self.rows.reduced).into(),
            times_temperature: self.rows.times_temperature.into(),
        }
    }

    fn upload<Q: Queue>(&self, queue: &mut Q) -> Result<Uploaded, Q::Error> {
        let (no_tiles, no_items) = (HeadTiles::default(), None);
        let (tiles, by_tokens) = match &self.head {
            Some(HeadPlan::Listed(tiles)) => (tiles, no_items),
            Some(HeadPlan::Whole(items)) => (&no_tiles, Some(items)),
            None => (&no_tiles, no_items),
        };
        let counters = by_tokens
            .map_or(0, |items| items.counters)
            .max(self.items.counters);
        // Those with 64-bit fields first: each part begins where another ends.
        let [
            groups,
            head_groups,
            rows,
            items,
            head_items,
            segments,
            starts,
            head_tokens,
            ignored,
            counters,
        ] = queue.upload([
            ("groups", bytemuck::cast_slice(&self.items.groups)),
            (
                "head groups",
                by_tokens.map_or(&[], |items| bytemuck::cast_slice(&items.groups)),
            ),
            ("rows", bytemuck::cast_slice(&self.rows.rows)),
            ("items", bytemuck::cast_slice(&self.items.items)),
            (
                "head items",
                by_tokens.map_or(&[], |items| bytemuck::cast_slice(&items.items)),
            ),
            ("segments", bytemuck::cast_slice(&tiles.segments)),
            ("segment starts", &tiles.starts),
            ("head tokens", &tiles.tokens),
            ("ignored", &self.rows.ignored),
            ("counters", &vec![0; counters as usize]),
        ])?;
        Ok(Uploaded {
            rows,
            groups,
            items,
            ignored,
            counters,
            head_groups,
            head_items,
            segments,
            starts,
            head_tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::launch::kernel_params::tests::assert_mirrored;

    #[test]
    fn kernels_mirror_every_struct() {
        assert_mirrored::<LinearBatch>();
        assert_mirrored::<GradientScale>();
        assert_mirrored::<rows::LinearRow>();
        assert_mirrored::<items::LinearGroup>();
        assert_mirrored::<items::LinearItem>();
        assert_mirrored::<head::LinearSegment>();
        assert_mirrored::<forward::LinearForwardParams>();
        assert_mirrored::<backward::LinearBackwardParams>();
        assert_mirrored::<LinearHeadGradientParams>();
    }
}
