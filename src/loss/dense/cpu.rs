//! The dense loss on the CPU: from candle's storage to the backend's slices.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Layout, Tensor};

use super::{LOGITS, not_contiguous};
use crate::backend::batch::Batch;
use crate::backend::cpu::dense::{self, Gradient, Logits, gather_statistics, softmax_rows};
use crate::loss::LossOutput;
use crate::loss::output::loss_dtype;
use crate::loss::pass::{Forward, Upstream, loss_shape, loss_values, output};
use crate::loss::temperature::TemperatureSource;
use crate::loss::tensor::{Scalar, cpu, matrix, matrix_shape, with_element};
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
    batch: &Batch,
    source: &TemperatureSource,
) -> Result<(Forward, Tensor)> {
    with_element!(logits.dtype(), LOGITS, T => {
        let (storage, layout) = logits.storage_and_layout();
        let view = view::<T>(cpu(LOGITS, &storage)?, layout)?;
        let mut values = bytemuck::zeroed_vec(logits.elem_count());
        let gradient = Gradient { values: &mut values, zeroed: true };
        let forward = pass(view, batch, source, Some(gradient))?;
        let gradient = Tensor::from_vec(values, logits.shape(), logits.device())?;
        Ok((forward, gradient))
    })
}

pub(super) fn forward(
    storage: &CpuStorage,
    layout: &Layout,
    batch: &Batch,
    source: &TemperatureSource,
) -> Result<Forward> {
    with_element!(storage.dtype(), LOGITS, T => {
        pass(view::<T>(storage, layout)?, batch, source, None)
    })
}

pub(super) fn backward(
    logits: &Tensor,
    batch: &Batch,
    forward: &Forward,
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

/// Loss and gradient in one pass, the gradient written over a storage that holds anything.
pub(super) fn forward_into(
    gradient: &mut CpuStorage,
    gradient_layout: &Layout,
    (logits, layout): (&CpuStorage, &Layout),
    batch: &Batch,
    source: &TemperatureSource,
) -> Result<Forward> {
    let range = gradient_layout.contiguous_offsets();
    with_element!(logits.dtype(), LOGITS, T => {
        let view = view::<T>(logits, layout)?;
        let values = (T::storage_as_mut_slice(gradient).zip(range))
            .and_then(|(values, (start, end))| values.get_mut(start..end));
        let values = values.ok_or_else(|| not_contiguous(gradient_layout))?;
        pass(view, batch, source, Some(Gradient { values, zeroed: false }))
    })
}

/// The same, written over the logits. A gradient of its own comes first, as nothing is gained by
/// doing without on the CPU.
pub(super) fn forward_over(
    storage: &mut CpuStorage,
    layout: &Layout,
    batch: &Batch,
    source: &TemperatureSource,
) -> Result<Forward> {
    let (stride, width) = matrix_shape(LOGITS, layout)?;
    with_element!(storage.dtype(), LOGITS, T => {
        let mut values = bytemuck::zeroed_vec::<T>(layout.shape().elem_count());
        let gradient = Gradient { values: &mut values, zeroed: true };
        let forward = pass(view::<T>(storage, layout)?, batch, source, Some(gradient))?;
        let logits = T::storage_as_mut_slice(storage)
            .and_then(|logits| logits.get_mut(layout.start_offset()..))
            .unwrap_or_default();
        let rows = logits.chunks_mut(stride.max(1)).zip(values.chunks(width.max(1)));
        rows.for_each(|(logits, gradient)| logits[..width].copy_from_slice(gradient));
        Ok(forward)
    })
}

/// The pass itself: statistics, temperature, softmax and, where asked for, the gradient.
fn pass<T: Scalar>(
    logits: Logits<T>,
    batch: &Batch,
    source: &TemperatureSource,
    gradient: Option<Gradient<T>>,
) -> Result<Forward> {
    // BEAR normalises the weights of all rows before any has a gradient.
    let (along, after) = match batch.bear {
        None => (gradient, None),
        Some(_) => (None, gradient),
    };
    let zeroing = along.as_ref().is_some_and(|gradient| !gradient.zeroed);
    let gathered = gather_statistics(logits, batch, zeroing)?;
    let statistics = gathered.statistics;
    let temperature = source.resolve(&statistics)?;
    let softmaxes = softmax_rows(logits, batch, gathered, temperature.0, along);
    let forward = Forward::new(batch, softmaxes, statistics, temperature);
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

/// The output of a pass over logits of this shape that autograd does not see.
pub(super) fn detached_output(
    shape: &[usize],
    dtype: DType,
    batch: &Batch,
    forward: &Forward,
) -> Result<LossOutput> {
    let values = loss_values(batch, forward);
    let loss = Tensor::from_vec(values, loss_shape(batch, shape), &Device::Cpu)?;
    output(loss.to_dtype(loss_dtype(dtype))?, batch, forward)
}

fn view<'a, T: Scalar>(storage: &'a CpuStorage, layout: &Layout) -> Result<Logits<'a, T>> {
    let matrix = matrix(LOGITS, T::cpu_storage_as_slice(storage)?, layout)?;
    Ok(Logits {
        values: matrix.values,
        stride: matrix.stride,
        vocabulary: matrix.width,
    })
}
