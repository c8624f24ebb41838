//! A whole pass over a batch: the memory that its plans ask for, and what is issued, in order.

use super::{
    LinearBackward, LinearBackwardBuffers, LinearChunks, LinearForwardBuffers, LinearGather,
    LinearHeadBuffers, LinearHeadGradient, LinearInputs, LinearRows, LinearShares, LinearStep,
    check_width,
};
use crate::backend::launch::{
    DeviceLimits, Element, Lifetime, Queue, TemperaturePlan, TokenSetsView,
};
use crate::{Error, Result, TokenSets};

/// A batch over hidden states and a head, whose passes are issued to a [`Queue`].
#[derive(Debug, Clone)]
pub struct LinearPass {
    rows: LinearRows,
    /// Where the head's gradient is wanted.
    shares: Option<LinearShares>,
    element: Element,
    width: usize,
    with_gradient: bool,
    limits: DeviceLimits,
}

/// What the caller has in device memory. Strides are elements between the beginnings of two rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearTensors {
    /// The hidden states `[N, H]`.
    pub hidden: u64,
    /// Of the hidden states.
    pub hidden_stride: u64,
    /// The head `[V, H]`.
    pub head: u64,
    /// Of the head: H where the rows range over the whole vocabulary.
    pub head_stride: u64,
    /// The bias `[V]`, or 0 for none.
    pub bias: u64,
    /// For each of [`LinearRows::grouped_sets`] that is frozen, its head rows `[tokens, H]`: for a forward
    /// pass.
    pub frozen: Vec<u64>,
    /// The token sets that the rows name.
    pub sets: TokenSetsView,
    /// One f64: the temperature so far, or 0 where it is not on the device. For a forward pass.
    pub previous: u64,
}

/// What a forward pass writes for the caller, in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearResults {
    /// [`LinearRows::losses`] f32.
    pub loss: u64,
    /// The f64 fields of [`Statistics`](crate::Statistics).
    pub statistics: u64,
    /// One f64: the temperature that was used.
    pub temperature: u64,
}

/// What a gradient goes on from, in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearUpstream {
    /// What the loss's gradient is, as many f32 as the loss has.
    pub loss: u64,
    /// As the forward pass wrote it.
    pub temperature: u64,
}

/// A forward pass that has been issued: where its queue keeps what gradients need.
#[derive(Debug, Clone, Copy)]
pub struct LinearForwarded {
    words: Words,
    unscaled: u64,
    /// The errors of the groups; of the whole vocabulary they are made once more.
    scores: u64,
}

/// What is uploaded of a batch.
#[derive(Debug, Clone, Copy)]
struct Words {
    rows: u64,
    /// With their tokens, and where those of each begin.
    shares: [u64; 3],
    idle: u64,
    gathered: u64,
    arrived: u64,
}

impl LinearPass {
    /// Passes over hidden states of `width` elements. For the gradients of head and bias, besides that of
    /// the hidden states, `head_over` are the sets that the rows were made with.
    ///
    /// # Errors
    /// As [`LinearForward::new`](super::LinearForward::new).
    pub fn new(
        rows: LinearRows,
        element: Element,
        width: usize,
        with_gradient: bool,
        head_over: Option<&TokenSets>,
        limits: &DeviceLimits,
    ) -> Result<Self> {
        check_width(width)?;
        Ok(Self {
            shares: head_over.map(|sets| LinearShares::new(&rows, sets)),
            rows,
            element,
            width,
            with_gradient: with_gradient || head_over.is_some(),
            limits: *limits,
        })
    }

    /// The rows of the batch.
    #[must_use]
    pub fn rows(&self) -> &LinearRows {
        &self.rows
    }

    /// Issues statistics, temperature, loss and, in a pass with gradient, what gradients are made of. All
    /// of the batch is uploaded in one piece, before any launch that a copy could wait for.
    ///
    /// # Safety
    /// The rows must name sets of `tensors.sets` and ranks in them, and tokens of the head. The addresses
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
        let rows = &self.rows;
        let chunks = self.chunks(temperature, self.with_gradient)?;
        let gather = LinearGather::new(rows, self.element, self.width, &self.limits)?;
        let words = self.upload(queue, chunks.arrived())?;
        let keeps_scores = self.shares.is_some() && !rows.is_whole();
        let of_scores = chunks.scores() * size_of::<f32>();
        let only = |wanted: bool, bytes: usize| if wanted { bytes } else { 0 };
        let [unscaled, kept] = queue.allocate(
            Lifetime::Kept,
            [
                ("unscaled", chunks.gradient() * size_of::<f32>()),
                ("kept scores", only(keeps_scores, of_scores)),
            ],
        )?;
        let [group_hidden, group_head, scores, errors, partials] = queue.allocate(
            Lifetime::Scratch,
            [
                ("group hidden", self.bytes(rows.grouped() * self.width)),
                (
                    "group head",
                    self.bytes(rows.gathered_head_rows() * self.width),
                ),
                ("scores", only(!keeps_scores, of_scores)),
                ("errors", self.bytes(chunks.errors())),
                ("partials", chunks.partials() * size_of::<f64>()),
            ],
        )?;
        let scores = if keeps_scores { kept } else { scores };
        let inputs = words.inputs(tensors);
        let buffers = LinearForwardBuffers {
            group_hidden,
            group_head,
            frozen: tensors.frozen.clone(),
            scores,
            errors,
            gradient: unscaled,
            loss: results.loss,
            partials,
            statistics: results.statistics,
            temperature: results.temperature,
            previous: tensors.previous,
            arrived: words.arrived,
        };
        // SAFETY: the parameters are the plans', and the buffers have the sizes that they ask for; for
        // those of the caller, the caller answers.
        unsafe {
            if let Some(gather) = gather {
                queue.launch(&gather.launch(&inputs, group_hidden, group_head))?;
            }
            issue(queue, &chunks.forward_steps(&inputs, &buffers))?;
        }
        Ok(LinearForwarded {
            words,
            unscaled,
            scores: kept,
        })
    }

    /// Issues the gradient of the hidden states `[N, H]`.
    ///
    /// # Safety
    /// The pass must be one with gradient, `forwarded` of it and still kept, and the addresses of such
    /// buffers, as in [`forward`](Self::forward).
    ///
    /// # Errors
    /// What `queue` says.
    pub unsafe fn hidden_gradient<Q: Queue>(
        &self,
        queue: &mut Q,
        forwarded: &LinearForwarded,
        upstream: LinearUpstream,
        gradient: u64,
    ) -> Result<(), Q::Error> {
        let plan = LinearBackward::new(&self.rows, self.element, self.width, &self.limits)?;
        let Some(plan) = plan else {
            return Ok(());
        };
        let buffers = LinearBackwardBuffers {
            gradient,
            unscaled: forwarded.unscaled,
            temperature: upstream.temperature,
            upstream: upstream.loss,
        };
        let launch = plan.launch(forwarded.words.rows, forwarded.words.idle, &buffers);
        // SAFETY: as in `forward`.
        unsafe { queue.launch(&launch) }
    }

    /// Issues the gradients of the head `[V, H]` and of its bias `[V]`, each over zeros, or neither
    /// where its address is 0.
    ///
    /// # Safety
    /// As [`hidden_gradient`](Self::hidden_gradient), `tensors` being those of the forward pass.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a pass without head gradient, and what `queue` says.
    pub unsafe fn head_gradient<Q: Queue>(
        &self,
        queue: &mut Q,
        forwarded: &LinearForwarded,
        tensors: &LinearTensors,
        upstream: LinearUpstream,
        [head, bias]: [u64; 2],
    ) -> Result<(), Q::Error> {
        let (rows, limits, words) = (&self.rows, &self.limits, &forwarded.words);
        let shares = self.shares.as_ref().ok_or_else(|| Error::Malformed {
            what: "pass",
            detail: "it was planned without the head's gradient".into(),
        })?;
        let plan = LinearHeadGradient::new(rows, shares, self.element, self.width, limits)?;
        let Some(plan) = plan else {
            return Ok(());
        };
        let [scaled, errors, products] = queue.allocate(
            Lifetime::Scratch,
            [
                ("scaled", plan.scaled() * size_of::<f32>()),
                ("ragged errors", plan.errors() * size_of::<f32>()),
                ("products", plan.products() * size_of::<f32>()),
            ],
        )?;
        let [shares, tokens, starts] = words.shares;
        let buffers = LinearHeadBuffers {
            shares,
            tokens,
            starts,
            scores: forwarded.scores,
            scaled,
            errors,
            products,
            temperature: upstream.temperature,
            upstream: upstream.loss,
            head,
            bias,
        };
        let inputs = words.inputs(tensors);
        // SAFETY: as in `forward`.
        unsafe {
            queue.launch(&plan.errors_launch(&inputs, &buffers))?;
            if rows.is_whole() {
                self.multiply_chunks(queue, words, &inputs, &buffers)?;
            } else {
                for product in plan.group_products(&buffers) {
                    queue.multiply(&product)?;
                }
            }
            queue.launch(&plan.launch(&buffers))
        }
    }

    /// The products of rows over the whole vocabulary, whose errors are made once more: to keep the room
    /// of a chunk's scores until then would cost more.
    ///
    /// # Safety
    /// As [`head_gradient`](Self::head_gradient).
    unsafe fn multiply_chunks<Q: Queue>(
        &self,
        queue: &mut Q,
        words: &Words,
        inputs: &LinearInputs,
        head: &LinearHeadBuffers,
    ) -> Result<(), Q::Error> {
        // The temperature is where the forward pass left it.
        let chunks = self.chunks(TemperaturePlan::at(1.0), false)?;
        let gather = LinearGather::new(&self.rows, self.element, self.width, &self.limits)?;
        let grouped = self.rows.grouped() * self.width;
        let [group_hidden, scores, partials] = queue.allocate(
            Lifetime::Scratch,
            [
                ("group hidden", self.bytes(grouped)),
                ("scores", chunks.scores() * size_of::<f32>()),
                ("partials", chunks.partials() * size_of::<f64>()),
            ],
        )?;
        let buffers = LinearForwardBuffers {
            group_hidden,
            scores,
            partials,
            temperature: head.temperature,
            arrived: words.arrived,
            ..LinearForwardBuffers::default()
        };
        // SAFETY: as in `forward`.
        unsafe {
            if let Some(gather) = gather {
                queue.launch(&gather.launch(inputs, group_hidden, 0))?;
            }
            issue(queue, &chunks.head_steps(inputs, &buffers, head))
        }
    }

    fn chunks(&self, temperature: TemperaturePlan, with_gradient: bool) -> Result<LinearChunks> {
        LinearChunks::new(
            &self.rows,
            self.element,
            self.width,
            temperature,
            with_gradient,
            &self.limits,
        )
    }

    fn upload<Q: Queue>(&self, queue: &mut Q, arrived: usize) -> Result<Words, Q::Error> {
        let none = LinearShares::default();
        let turned = self.shares.as_ref().unwrap_or(&none);
        // Those with 64-bit fields first: each part begins where another ends.
        let [rows, shares, tokens, starts, idle, gathered, arrived] = queue.upload([
            ("rows", bytemuck::cast_slice(&self.rows.rows)),
            ("shares", bytemuck::cast_slice(&turned.shares)),
            ("share tokens", &turned.tokens),
            ("share starts", &turned.starts),
            ("idle", &self.rows.idle),
            ("gathered", &self.rows.gathered),
            ("arrived", &vec![0; arrived]),
        ])?;
        Ok(Words {
            rows,
            shares: [shares, tokens, starts],
            idle,
            gathered,
            arrived,
        })
    }

    /// Of so many elements.
    fn bytes(&self, elements: usize) -> usize {
        elements * self.element.bytes() as usize
    }
}

impl Words {
    fn inputs(&self, tensors: &LinearTensors) -> LinearInputs {
        LinearInputs {
            hidden: tensors.hidden,
            hidden_stride: tensors.hidden_stride,
            head: tensors.head,
            head_stride: tensors.head_stride,
            bias: tensors.bias,
            rows: self.rows,
            idle: self.idle,
            gathered: self.gathered,
            sets: tensors.sets,
        }
    }
}

/// # Safety
/// As [`Queue::launch`] and [`Queue::multiply`].
unsafe fn issue<Q: Queue>(queue: &mut Q, steps: &[LinearStep]) -> Result<(), Q::Error> {
    for step in steps {
        // SAFETY: the caller's promise.
        unsafe {
            match step {
                LinearStep::Product(product) => queue.multiply(product)?,
                LinearStep::Launch(launch) => queue.launch(launch)?,
            }
        }
    }
    Ok(())
}
