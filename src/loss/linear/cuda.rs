//! The loss over hidden states on CUDA: a `launch::LinearPlan` over candle's storage. Nothing here waits for the device.

use std::ops::Deref;

use bytemuck::Zeroable;
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CudaStorage, Layout, Shape, Storage, Tensor};

use super::HIDDEN;
use super::inputs::FrozenRows;
use crate::Result;
use crate::backend::cpu::linear::Wanted;
use crate::backend::cuda::Executor;
use crate::backend::cuda::stream::CandleStream;
use crate::backend::launch::{
    HeadBase, LinearGradients, LinearPlan, LinearRows, LinearSaved, LinearTensors, TokenSetsView,
};
use crate::loss::call::LossCall;
use crate::loss::device::{
    self, Stored, cuda, element, from_storage, read, read_matrix, require_address,
    uninitialised_like, write,
};
use crate::loss::head::{BIAS, HEAD};
use crate::loss::tensor::matrix_shape;

pub(super) type SavedForward = device::SavedForward<(LinearPlan, LinearSaved)>;

/// Hidden states, head and bias as candle passes them to the op, and the frozen rows before those of the head.
pub(super) struct Inputs<'a> {
    pub hidden: Stored<'a>,
    pub head: Stored<'a>,
    pub base: Option<Stored<'a>>,
    pub bias: Option<Stored<'a>>,
}

/// Runs a forward pass. `direct` says whether it computes the gradient of the hidden states itself.
pub(super) fn forward(
    inputs: &Inputs,
    call: &LossCall,
    wanted: Wanted,
    direct: bool,
) -> Result<(SavedForward, CudaStorage)> {
    let (hidden, layout) = inputs.hidden;
    let sets = &call.batch.sets;
    let gradients = match wanted {
        Wanted { head: true, .. } => match inputs.base.map_or(0, base_rows) {
            0 => LinearGradients::All(sets),
            first_token => LinearGradients::AddedRows { sets, first_token },
        },
        Wanted { hidden: true, .. } if direct => LinearGradients::Direct,
        Wanted { hidden: true, .. } => LinearGradients::Hidden,
        _ => LinearGradients::None,
    };
    let executor = Executor::new(&hidden.device)?;
    let plan = LinearPlan::new(
        LinearRows::new(&call.batch),
        element(HIDDEN, hidden.dtype())?,
        matrix_shape(HIDDEN, layout)?.1,
        gradients,
        executor.limits(),
        LinearPlan::MOST_SCORES,
    )?;
    let mut gradient = match gradients {
        LinearGradients::Direct => Some(uninitialised_like(&hidden.device, inputs.hidden)?),
        _ => None,
    };
    let mut stream = CandleStream::new(&executor);
    let tensors = read_inputs(&mut stream, inputs)?;
    let to = match &mut gradient {
        Some(gradient) => write(&mut stream, HIDDEN, gradient, 0)?,
        None => None,
    };
    let totals = plan.rows().totals.clone();
    let issue = |stream: &mut CandleStream, with: &device::ForwardInputs, results: &_| {
        let tensors = LinearTensors {
            sets: with.sets,
            previous: with.previous,
            ..tensors
        };
        // SAFETY: the sets are those of the rows, whose tokens were checked against the head, and the results have the documented
        // sizes. The stream holds candle's buffers until the last launch is issued, and frees its own memory in the order of the
        // stream.
        let saved = unsafe { plan.issue_forward(stream, &tensors, with.temperature, to, results) }?;
        Ok((plan, saved))
    };
    let (mut forward, loss) = device::issue_forward(stream, call, &totals, issue)?;
    forward.gradient = gradient.map(|gradient| from_storage(gradient, layout.shape()));
    Ok((forward, loss))
}

/// Returns the gradients of hidden states, head and bias; `None` for those that are not wanted.
pub(super) fn backward(
    [hidden, head, bias]: [&Tensor; 3],
    frozen: &FrozenRows,
    has_bias: bool,
    wanted: Wanted,
    forward: &SavedForward,
    upstream: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    let locked = [hidden, head, bias].map(Tensor::storage_and_layout);
    let stored = |index: usize| -> Result<Stored> {
        let (storage, layout) = &locked[index];
        Ok((cuda(HIDDEN, storage)?, layout))
    };
    let base = frozen.base();
    let inputs = Inputs {
        hidden: stored(0)?,
        head: stored(1)?,
        base: stored_base(&base)?,
        bias: if has_bias { Some(stored(2)?) } else { None },
    };
    let device = forward.executor.device();
    let zeros = |tensor: &Tensor| -> Result<Option<CudaStorage>> {
        let elements = Shape::from(tensor.elem_count().max(1));
        let zeros = || device.zeros_impl(&elements, tensor.dtype());
        Ok((wanted.head && tensor.track_op()).then(zeros).transpose()?)
    };
    let mut gradients = [None, zeros(head)?, zeros(bias)?];
    if wanted.hidden {
        gradients[0] = Some(uninitialised_like(device, inputs.hidden)?);
    }
    let mut stream = CandleStream::new(&forward.executor);
    // The launches read the inputs at the addresses that the forward pass saved.
    read_inputs(&mut stream, &inputs)?;
    let mut to = [None; 3];
    for (to, gradient) in to.iter_mut().zip(&mut gradients) {
        if let Some(gradient) = gradient {
            *to = Some(require_address(write(&mut stream, HIDDEN, gradient, 0)?)?);
        }
    }
    let ([to_hidden, to_head, to_bias], (plan, saved)) = (to, &forward.saved);
    forward.issue_backward(stream, upstream, |stream, upstream| {
        // SAFETY: as in `forward`.
        unsafe {
            if let Some(to_hidden) = to_hidden {
                plan.issue_hidden_gradient(stream, saved, upstream, to_hidden)?;
            }
            if wanted.head {
                plan.issue_head_gradient(stream, saved, upstream, [to_head, to_bias])?;
            }
        }
        Ok(())
    })?;
    let mut shapes = [hidden, head, bias].map(Tensor::shape).into_iter();
    Ok(gradients.map(|gradient| {
        let shape = shapes.next()?;
        Some(from_storage(gradient?, shape))
    }))
}

/// Returns the storage of the frozen rows before the added ones.
pub(super) fn stored_base<'a>(
    base: &'a Option<(impl Deref<Target = Storage>, &'a Layout)>,
) -> Result<Option<Stored<'a>>> {
    match base {
        Some((storage, layout)) => Ok(Some((cuda(HEAD, storage)?, layout))),
        None => Ok(None),
    }
}

/// Returns the number of the frozen rows before the added ones, which fits 32 bits as tokens do.
fn base_rows((_, layout): Stored) -> u32 {
    layout.dims()[0] as u32
}

/// Adds the inputs, which launches read. Token sets and the temperature are not among them.
fn read_inputs<'a>(stream: &mut CandleStream<'a>, inputs: &Inputs<'a>) -> Result<LinearTensors> {
    let mut tensors = LinearTensors {
        hidden: read_matrix(stream, HIDDEN, inputs.hidden)?,
        head: read_matrix(stream, HEAD, inputs.head)?,
        base: None,
        bias: None,
        sets: TokenSetsView::zeroed(),
        previous: None,
    };
    if let Some(base) = inputs.base {
        tensors.base = Some(HeadBase {
            matrix: read_matrix(stream, HEAD, base)?,
            rows: base_rows(base),
        });
    }
    if let Some(bias) = inputs.bias {
        tensors.bias = read(stream, BIAS, bias)?;
    }
    Ok(tensors)
}
