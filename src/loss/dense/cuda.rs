//! The loss over logits on CUDA: a `launch::DensePlan` over candle's storage. Nothing here waits for the device.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Tensor};

use super::{LOGITS, not_contiguous};
use crate::Result;
use crate::backend::cuda::Executor;
use crate::backend::cuda::stream::CandleStream;
use crate::backend::launch::{DensePlan, DenseRows, DenseSaved, DenseTensors, DeviceMatrix};
use crate::loss::LossOutput;
use crate::loss::call::{LossCall, loss_shape};
use crate::loss::device::{
    self, Stored, cuda, element, from_storage, read_matrix, uninitialised_like, write,
};
use crate::loss::temperature::Stepped;
use crate::loss::tensor::matrix_shape;

pub(super) type SavedForward = device::SavedForward<(DensePlan, DenseSaved)>;

pub(super) fn forward(logits: Stored, call: &LossCall) -> Result<(SavedForward, CudaStorage)> {
    let executor = Executor::new(&logits.0.device)?;
    let mut stream = CandleStream::new(&executor);
    let matrix = read_matrix(&mut stream, LOGITS, logits)?;
    issue_forward(stream, logits.0.dtype(), logits.1, matrix, None, call)
}

pub(super) fn backward(
    logits: &Tensor,
    forward: &SavedForward,
    upstream: &Tensor,
) -> Result<Tensor> {
    let (storage, layout) = logits.storage_and_layout();
    let logits = (cuda(LOGITS, &storage)?, layout);
    let mut gradient = uninitialised_like(&logits.0.device, logits)?;
    let mut stream = CandleStream::new(&forward.executor);
    // The launch reads the logits at the addresses that the forward pass saved.
    read_matrix(&mut stream, LOGITS, logits)?;
    let to = contiguous(&mut stream, &mut gradient, 0, layout)?;
    let (plan, saved) = &forward.saved;
    forward.issue_backward(stream, upstream, |stream, upstream| {
        // SAFETY: as in `issue_forward`.
        unsafe { plan.issue_backward(stream, saved, upstream, to) }
    })?;
    Ok(from_storage(gradient, layout.shape()))
}

pub(super) fn value_and_gradient(
    logits: &Tensor,
    call: &LossCall,
) -> Result<(LossOutput, Option<Stepped>, Tensor)> {
    let (storage, layout) = logits.storage_and_layout();
    let logits = (cuda(LOGITS, &storage)?, layout);
    let mut gradient = uninitialised_like(&logits.0.device, logits)?;
    let (output, stepped) = forward_with(&mut gradient, 0, logits, call)?;
    Ok((output, stepped, from_storage(gradient, layout.shape())))
}

/// Computes loss and gradient in one launch, and overwrites `gradient`.
pub(super) fn forward_into(
    (gradient, gradient_layout): (&mut CudaStorage, &Layout),
    logits: Stored,
    call: &LossCall,
) -> Result<(LossOutput, Option<Stepped>)> {
    match gradient_layout.contiguous_offsets() {
        Some((start, _)) => forward_with(gradient, start, logits, call),
        None => Err(not_contiguous(gradient_layout)),
    }
}

/// Computes loss and gradient in one launch, and overwrites the logits with the gradient.
pub(super) fn forward_over(
    storage: &mut CudaStorage,
    layout: &Layout,
    call: &LossCall,
) -> Result<(LossOutput, Option<Stepped>)> {
    let executor = Executor::new(&storage.device)?;
    let dtype = storage.dtype();
    let mut stream = CandleStream::new(&executor);
    let matrix = DeviceMatrix {
        address: write(&mut stream, LOGITS, storage, layout.start_offset())?,
        row_stride: matrix_shape(LOGITS, layout)?.0 as u64,
    };
    let forward = issue_forward(stream, dtype, layout, matrix, Some(matrix), call)?;
    detached(forward, layout, call)
}

/// Computes loss and gradient in one launch, and writes the gradient to `gradient` from element `start` on.
fn forward_with(
    gradient: &mut CudaStorage,
    start: usize,
    logits: Stored,
    call: &LossCall,
) -> Result<(LossOutput, Option<Stepped>)> {
    let executor = Executor::new(&logits.0.device)?;
    let mut stream = CandleStream::new(&executor);
    let matrix = read_matrix(&mut stream, LOGITS, logits)?;
    let to = contiguous(&mut stream, gradient, start, logits.1)?;
    let forward = issue_forward(stream, logits.0.dtype(), logits.1, matrix, Some(to), call)?;
    detached(forward, logits.1, call)
}

/// Adds the gradient that launches write, which is contiguous from element `start` on.
fn contiguous<'a>(
    stream: &mut CandleStream<'a>,
    gradient: &'a mut CudaStorage,
    start: usize,
    logits: &Layout,
) -> Result<DeviceMatrix> {
    Ok(DeviceMatrix {
        address: write(stream, LOGITS, gradient, start)?,
        row_stride: matrix_shape(LOGITS, logits)?.1 as u64,
    })
}

/// Issues a forward pass to a stream that has the logits and the gradient.
fn issue_forward(
    stream: CandleStream,
    dtype: DType,
    layout: &Layout,
    logits: DeviceMatrix,
    gradient: Option<DeviceMatrix>,
    call: &LossCall,
) -> Result<(SavedForward, CudaStorage)> {
    let (rows, (_, width)) = (DenseRows::new(&call.batch), matrix_shape(LOGITS, layout)?);
    let limits = stream.executor().limits();
    let plan = DensePlan::new(rows, element(LOGITS, dtype)?, width, limits)?;
    let totals = plan.rows().totals.clone();
    device::issue_forward(stream, call, &totals, |stream, inputs, results| {
        let tensors = DenseTensors {
            logits,
            sets: inputs.sets,
            previous: inputs.previous,
        };
        // SAFETY: the sets are those of the rows, whose tokens were checked against the width, and the results have the documented
        // sizes. The stream holds candle's buffers until the launch is issued, and frees its own memory in the order of the
        // stream.
        let saved =
            unsafe { plan.issue_forward(stream, &tensors, inputs.temperature, gradient, results) }?;
        Ok((plan, saved))
    })
}

/// Returns the output of a pass, detached from autograd.
fn detached(
    (forward, loss): (SavedForward, CudaStorage),
    layout: &Layout,
    LossCall { batch, .. }: &LossCall,
) -> Result<(LossOutput, Option<Stepped>)> {
    forward.output(from_storage(loss, loss_shape(batch, layout.dims())), batch)
}
