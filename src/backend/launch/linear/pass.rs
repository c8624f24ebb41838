//! A whole pass over a batch: the memory that its plans ask for, and what is issued, in order.

use super::{
    LinearBackward, LinearBackwardBuffers, LinearChunks, LinearForwardBuffers, LinearGather,
    LinearHeadBuffers, LinearHeadGradient, LinearInputs, LinearRows, LinearShares, LinearStep,
};
use crate::backend::launch::{DenseTemperature, DeviceLimits, Element, Queue, TokenSetsView};
use crate::{Result, TokenSets};

/// The plans of a pass over hidden states and a head, to be issued to a [`Queue`].
#[derive(Debug, Clone)]
pub struct LinearPass<'a> {
    rows: &'a LinearRows,
    element: Element,
    width: usize,
    limits: DeviceLimits,
    gather: Option<LinearGather<'a>>,
    chunks: LinearChunks,
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
    /// For each of [`LinearRows::grouped_sets`] that is frozen, its head rows `[tokens, H]`.
    pub frozen: Vec<u64>,
    /// The token sets that the rows name.
    pub sets: TokenSetsView,
    /// One f64: the temperature so far, or 0 where it is not on the device.
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

/// A forward pass that has been issued, for its gradients.
#[derive(Debug)]
pub struct LinearForwarded<'p> {
    pass: &'p LinearPass<'p>,
    inputs: LinearInputs,
    buffers: LinearForwardBuffers,
}

impl<'a> LinearPass<'a> {
    /// A pass over hidden states of `width` elements.
    ///
    /// # Errors
    /// As [`LinearForward::new`](super::LinearForward::new).
    pub fn new(
        rows: &'a LinearRows,
        element: Element,
        width: usize,
        temperature: DenseTemperature,
        with_gradient: bool,
        limits: &DeviceLimits,
    ) -> Result<Self> {
        Ok(Self {
            rows,
            element,
            width,
            limits: *limits,
            gather: LinearGather::new(rows, element, width, limits)?,
            chunks: LinearChunks::new(rows, element, width, temperature, with_gradient, limits)?,
        })
    }

    /// Issues statistics, temperature, loss and, in a pass with gradient, what gradients are made of.
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
        results: &LinearResults,
    ) -> Result<LinearForwarded<'_>, Q::Error> {
        let inputs = self.inputs(queue, tensors)?;
        let buffers = self.buffers(queue, tensors, results)?;
        // SAFETY: the parameters are the plans', and the buffers have the sizes that they ask for; for
        // those of the caller, the caller answers.
        unsafe {
            if let Some(gather) = &self.gather {
                let launch = gather.launch(&inputs, buffers.group_hidden, buffers.group_head);
                queue.launch(&launch)?;
            }
            issue(queue, &self.chunks.forward_steps(&inputs, &buffers))?;
        }
        Ok(LinearForwarded {
            pass: self,
            inputs,
            buffers,
        })
    }

    fn inputs<Q: Queue>(
        &self,
        queue: &mut Q,
        tensors: &LinearTensors,
    ) -> Result<LinearInputs, Q::Error> {
        let [rows, idle, gathered] = queue.upload([
            ("rows", bytemuck::cast_slice(&self.rows.rows)),
            ("idle", &self.rows.idle),
            ("gathered", &self.rows.gathered),
        ])?;
        Ok(LinearInputs {
            hidden: tensors.hidden,
            hidden_stride: tensors.hidden_stride,
            head: tensors.head,
            head_stride: tensors.head_stride,
            bias: tensors.bias,
            rows,
            idle,
            gathered,
            sets: tensors.sets,
        })
    }

    fn buffers<Q: Queue>(
        &self,
        queue: &mut Q,
        tensors: &LinearTensors,
        results: &LinearResults,
    ) -> Result<LinearForwardBuffers, Q::Error> {
        let (rows, chunks) = (self.rows, &self.chunks);
        let row_bytes = self.width * self.element.bytes() as usize;
        let error_bytes = chunks.errors() * self.element.bytes() as usize;
        let head_rows = rows.gathered_head_rows();
        let [arrived] = queue.upload([("arrived", &vec![0; chunks.arrived()])])?;
        Ok(LinearForwardBuffers {
            group_hidden: queue.allocate("group hidden", rows.grouped() * row_bytes)?,
            group_head: queue.allocate("group head", head_rows * row_bytes)?,
            frozen: tensors.frozen.clone(),
            scores: allocate::<f32, Q>(queue, "scores", chunks.scores())?,
            errors: queue.allocate("errors", error_bytes)?,
            gradient: allocate::<f32, Q>(queue, "unscaled", chunks.gradient())?,
            loss: results.loss,
            partials: allocate::<f64, Q>(queue, "partials", chunks.partials())?,
            statistics: results.statistics,
            temperature: results.temperature,
            previous: tensors.previous,
            arrived,
        })
    }
}

impl LinearForwarded<'_> {
    /// Issues the gradient of the hidden states `[N, H]`, from as many f32 of `upstream` as the loss has.
    ///
    /// # Safety
    /// The pass must be one with gradient, and the addresses of such buffers; all as in
    /// [`forward`](LinearPass::forward), whose buffers must still be there.
    ///
    /// # Errors
    /// What `queue` says.
    pub unsafe fn hidden_gradient<Q: Queue>(
        &self,
        queue: &mut Q,
        upstream: u64,
        gradient: u64,
    ) -> Result<(), Q::Error> {
        let LinearPass { rows, element, .. } = *self.pass;
        let Some(plan) = LinearBackward::new(rows, element, self.pass.width, &self.pass.limits)?
        else {
            return Ok(());
        };
        let buffers = LinearBackwardBuffers {
            gradient,
            unscaled: self.buffers.gradient,
            temperature: self.buffers.temperature,
            upstream,
        };
        let launch = plan.launch(self.inputs.rows, self.inputs.idle, &buffers);
        // SAFETY: as in `forward`.
        unsafe { queue.launch(&launch) }
    }

    /// Issues the gradients of the head `[V, H]` and of its bias `[V]`, each over zeros, or neither
    /// where its address is 0. `sets` are those that the rows were made with.
    ///
    /// # Safety
    /// As [`hidden_gradient`](Self::hidden_gradient).
    ///
    /// # Errors
    /// What `queue` says.
    pub unsafe fn head_gradient<Q: Queue>(
        &self,
        queue: &mut Q,
        sets: &TokenSets,
        upstream: u64,
        [head, bias]: [u64; 2],
    ) -> Result<(), Q::Error> {
        let LinearPass { rows, element, .. } = *self.pass;
        let (width, limits) = (self.pass.width, &self.pass.limits);
        let turned = LinearShares::new(rows, sets);
        let Some(plan) = LinearHeadGradient::new(rows, &turned, element, width, limits)? else {
            return Ok(());
        };
        let [shares, tokens, starts] = queue.upload([
            ("shares", bytemuck::cast_slice(&turned.shares)),
            ("share tokens", &turned.tokens),
            ("share starts", &turned.starts),
        ])?;
        let buffers = LinearHeadBuffers {
            shares,
            tokens,
            starts,
            scores: self.buffers.scores,
            scaled: allocate::<f32, Q>(queue, "scaled", plan.scaled())?,
            errors: allocate::<f32, Q>(queue, "ragged errors", plan.errors())?,
            products: allocate::<f32, Q>(queue, "products", plan.products())?,
            temperature: self.buffers.temperature,
            upstream,
            head,
            bias,
        };
        // SAFETY: as in `forward`.
        unsafe {
            queue.launch(&plan.errors_launch(&self.inputs, &buffers))?;
            if rows.is_whole() {
                issue(queue, &self.head_steps(&buffers)?)?;
            } else {
                for product in plan.group_products(&buffers) {
                    queue.multiply(&product)?;
                }
            }
            queue.launch(&plan.launch(&buffers))
        }
    }

    /// Over the whole vocabulary, in the room that the forward pass had.
    fn head_steps(&self, head: &LinearHeadBuffers) -> Result<Vec<LinearStep>> {
        let LinearPass { rows, element, .. } = *self.pass;
        // The temperature is where the forward pass left it.
        let given = DenseTemperature::at(1.0);
        let (width, limits) = (self.pass.width, &self.pass.limits);
        let plan = LinearChunks::new(rows, element, width, given, false, limits)?;
        Ok(plan.head_steps(&self.inputs, &self.buffers, head))
    }
}

fn allocate<T, Q: Queue>(
    queue: &mut Q,
    name: &'static str,
    length: usize,
) -> Result<u64, Q::Error> {
    queue.allocate(name, length * size_of::<T>())
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
