//! The loss over logits on the CPU: from candle's storage to the backend's slices.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Layout, Tensor};

use super::{LOGITS, not_contiguous};
use crate::backend::batch::Batch;
use crate::backend::cpu::dense::{self, Gradient, Logits, gather_statistics, softmax_rows};
use crate::loss::LossOutput;
use crate::loss::call::{CpuForward, LossCall, Upstream, loss_shape, loss_values, output};
use crate::loss::output::loss_dtype;
use crate::loss::temperature::Stepped;
use crate::loss::tensor::{Scalar, cpu, matrix, matrix_shape, values_mut, with_element};
use crate::{Result, Statistics};

pub(super) fn statistics(logits: &Tensor, batch: &Batch) -> Result<Statistics> {
    with_element!(logits.dtype(), LOGITS, T => {
        let (storage, layout) = logits.storage_and_layout();
        let logits = view::<T>(cpu(LOGITS, &storage)?, layout)?;
        Ok(gather_statistics(logits, batch, false)?.statistics)
    })
}

pub(super) fn value_and_gradient(
    logits: &Tensor,
    call: &LossCall,
) -> Result<(LossOutput, Option<Stepped>, Tensor)> {
    with_element!(logits.dtype(), LOGITS, T => {
        let (storage, layout) = logits.storage_and_layout();
        let view = view::<T>(cpu(LOGITS, &storage)?, layout)?;
        let mut values = bytemuck::zeroed_vec(logits.elem_count());
        let gradient = Gradient { values: &mut values, zeroed: true };
        let forward = run(view, call, Some(gradient))?;
        let (output, stepped) = detached_output(logits.dims(), logits.dtype(), call, &forward)?;
        Ok((output, stepped, Tensor::from_vec(values, logits.shape(), logits.device())?))
    })
}

pub(super) fn forward(
    storage: &CpuStorage,
    layout: &Layout,
    call: &LossCall,
) -> Result<CpuForward> {
    with_element!(storage.dtype(), LOGITS, T => run(view::<T>(storage, layout)?, call, None))
}

pub(super) fn backward(
    logits: &Tensor,
    batch: &Batch,
    forward: &CpuForward,
    upstream: &Tensor,
) -> Result<Tensor> {
    let upstream = Upstream::new(upstream)?;
    with_element!(logits.dtype(), LOGITS, T => {
        let (storage, layout) = logits.storage_and_layout();
        let mut values = bytemuck::zeroed_vec(logits.elem_count());
        dense::backward(
            view::<T>(cpu(LOGITS, &storage)?, layout)?,
            batch,
            &forward.softmaxes,
            forward.temperature,
            |index| upstream.factor(batch, forward, index),
            Gradient { values: &mut values, zeroed: true },
        );
        Ok(Tensor::from_vec(values, logits.shape(), logits.device())?)
    })
}

/// Computes loss and gradient in one pass, and overwrites `gradient`.
pub(super) fn forward_into(
    (gradient, gradient_layout): (&mut CpuStorage, &Layout),
    (logits, layout): (&CpuStorage, &Layout),
    call: &LossCall,
) -> Result<(LossOutput, Option<Stepped>)> {
    let range = gradient_layout.contiguous_offsets();
    let forward = with_element!(logits.dtype(), LOGITS, T => {
        let values = (values_mut::<T>(gradient).zip(range))
            .and_then(|(values, (start, end))| values.get_mut(start..end));
        let values = values.ok_or_else(|| not_contiguous(gradient_layout))?;
        let gradient = Gradient { values, zeroed: false };
        run(view::<T>(logits, layout)?, call, Some(gradient))
    })?;
    detached_output(layout.dims(), logits.dtype(), call, &forward)
}

/// Computes loss and gradient in one pass, and overwrites the logits with the gradient. The gradient is computed in separate memory
/// first, because nothing is gained by avoiding this on the CPU.
pub(super) fn forward_over(
    storage: &mut CpuStorage,
    layout: &Layout,
    call: &LossCall,
) -> Result<(LossOutput, Option<Stepped>)> {
    let (stride, width) = matrix_shape(LOGITS, layout)?;
    let forward = with_element!(storage.dtype(), LOGITS, T => {
        let mut values = bytemuck::zeroed_vec::<T>(layout.shape().elem_count());
        let gradient = Gradient { values: &mut values, zeroed: true };
        let forward = run(view::<T>(storage, layout)?, call, Some(gradient))?;
        let logits = values_mut::<T>(storage)
            .and_then(|logits| logits.get_mut(layout.start_offset()..))
            .unwrap_or_default();
        let rows = logits.chunks_mut(stride.max(1)).zip(values.chunks(width.max(1)));
        rows.for_each(|(logits, gradient)| logits[..width].copy_from_slice(gradient));
        Ok(forward)
    })?;
    detached_output(layout.dims(), storage.dtype(), call, &forward)
}

/// Computes statistics, temperature, softmax and, if `gradient` is given, the gradient.
pub(in crate::loss) fn run<T: Scalar>(
    logits: Logits<T>,
    LossCall { batch, source, .. }: &LossCall,
    gradient: Option<Gradient<T>>,
) -> Result<CpuForward> {
    // Under BEAR the gradient of a row depends on the weights of all rows.
    let (along, after) = match batch.bear {
        None => (gradient, None),
        Some(_) => (None, gradient),
    };
    let zeroing = along.as_ref().is_some_and(|gradient| !gradient.zeroed);
    let gathered = gather_statistics(logits, batch, zeroing)?;
    let statistics = gathered.statistics;
    let temperature = source.resolve(&statistics)?;
    let softmaxes = softmax_rows(logits, batch, gathered, temperature.0, along);
    let forward = CpuForward::new(batch, softmaxes, statistics, temperature);
    if let Some(gradient) = after {
        dense::backward(
            logits,
            batch,
            &forward.softmaxes,
            forward.temperature,
            |index| forward.gradient_factor(batch, index),
            gradient,
        );
    }
    Ok(forward)
}

/// Returns the output, detached from autograd, of a pass over logits of this shape.
fn detached_output(
    shape: &[usize],
    dtype: DType,
    call: &LossCall,
    forward: &CpuForward,
) -> Result<(LossOutput, Option<Stepped>)> {
    let values = loss_values(&call.batch, forward);
    let loss = Tensor::from_vec(values, loss_shape(&call.batch, shape), &Device::Cpu)?;
    output(loss.to_dtype(loss_dtype(dtype))?, &call.batch, forward)
}

fn view<'a, T: Scalar>(storage: &'a CpuStorage, layout: &Layout) -> Result<Logits<'a, T>> {
    let matrix = matrix(LOGITS, T::cpu_storage_as_slice(storage)?, layout)?;
    Ok(Logits {
        values: matrix.values,
        stride: matrix.stride,
        vocabulary: matrix.width,
    })
}
