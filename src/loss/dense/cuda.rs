//! The dense loss on CUDA: from candle's storage to the backend's launches. Nothing here waits for
//! the device.

use candle_core::backend::BackendStorage;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Tensor};
use cudarc::driver::{CudaSlice, CudaView};

use super::{LOGITS, not_contiguous};
use crate::backend::batch::Batch;
use crate::backend::cuda::dense::{
    DeviceBatch, DeviceElement, DeviceLogits, Forwarded, uninitialised,
};
use crate::backend::launch::{DenseRows, TemperaturePlan};
use crate::loss::LossOutput;
use crate::loss::device::{
    Measured, at_temperature, cuda, from_storage, part, tensor, with_device_element,
};
use crate::loss::pass::loss_shape;
use crate::loss::residence::Residence;
use crate::loss::temperature::{Stepped, TemperatureSource};
use crate::loss::tensor::matrix_shape;
use crate::{Result, Statistics, Temperature};

/// What a forward pass left, on the device but for the plan.
pub(super) struct Left {
    batch: DeviceBatch,
    softmaxes: CudaSlice<f32>,
    measured: Measured,
}

impl Left {
    pub fn output(&self, loss: Tensor, batch: &Batch) -> Result<LossOutput> {
        self.measured.output(loss, batch)
    }

    pub fn stepped(&self) -> Option<Stepped> {
        self.measured.stepped()
    }
}

pub(super) fn forward(
    storage: &CudaStorage,
    layout: &Layout,
    batch: &Batch,
    source: &TemperatureSource,
    residence: &Residence,
) -> Result<(Left, CudaStorage)> {
    let device = &storage.device;
    let on_device = upload(device, batch, residence)?;
    with_device_element!(storage.dtype(), LOGITS, T => {
        let logits = view::<T>(storage, layout)?;
        let forwarded = at_temperature(source, next(on_device.plan()), |temperature| {
            on_device.forward(&logits, temperature, None)
        })?;
        Ok(left(device, on_device, forwarded, source))
    })
}

pub(super) fn backward(logits: &Tensor, left: &Left, upstream: &Tensor) -> Result<Tensor> {
    let upstream = upstream.to_dtype(DType::F32)?.contiguous()?;
    let (upstream, upstream_layout) = upstream.storage_and_layout();
    let upstream = part(
        cuda(LOGITS, &upstream)?.as_cuda_slice::<f32>()?,
        upstream_layout,
    );
    let (temperature, _) = left.measured.temperature.storage_and_layout();
    let temperature = cuda(LOGITS, &temperature)?.as_cuda_slice::<f64>()?;
    with_device_element!(logits.dtype(), LOGITS, T => {
        let (storage, layout) = logits.storage_and_layout();
        let storage = cuda(LOGITS, &storage)?;
        let mut gradient = uninitialised::<T>(&storage.device, logits.elem_count())?;
        let view = view::<T>(storage, layout)?;
        left.batch.backward(&view, &left.softmaxes, temperature, &upstream, &mut gradient)?;
        Ok(tensor(&storage.device, gradient, logits.shape()))
    })
}

pub(super) fn statistics(
    logits: &Tensor,
    batch: &Batch,
    residence: &Residence,
) -> Result<Statistics> {
    let (storage, layout) = logits.storage_and_layout();
    let at_any = TemperatureSource::Given(1.0);
    let (left, loss) = forward(cuda(LOGITS, &storage)?, layout, batch, &at_any, residence)?;
    let loss = from_storage(loss, loss_shape(batch, logits.dims()));
    left.output(loss, batch)?.read_statistics()
}

pub(super) fn value_and_gradient(
    logits: &Tensor,
    batch: &Batch,
    source: &TemperatureSource,
    residence: &Residence,
) -> Result<(LossOutput, Tensor, Option<Stepped>)> {
    with_device_element!(logits.dtype(), LOGITS, T => {
        let (storage, layout) = logits.storage_and_layout();
        let storage = cuda(LOGITS, &storage)?;
        let device = &storage.device;
        let mut gradient = uninitialised::<T>(device, logits.elem_count())?;
        let (output, stepped) =
            forward_with::<T>((storage, layout), batch, source, residence, &mut gradient, 0)?;
        Ok((output, tensor(device, gradient, logits.shape()), stepped))
    })
}

/// Loss and gradient in one launch, the gradient written over a storage that holds anything.
pub(super) fn forward_into(
    (gradient, gradient_layout): (&mut CudaStorage, &Layout),
    logits: (&CudaStorage, &Layout),
    batch: &Batch,
    source: &TemperatureSource,
    residence: &Residence,
) -> Result<(LossOutput, Option<Stepped>)> {
    let Some((start, _)) = gradient_layout.contiguous_offsets() else {
        return Err(not_contiguous(gradient_layout));
    };
    with_device_element!(logits.0.dtype(), LOGITS, T => {
        let gradient = gradient.as_cuda_slice_mut::<T>()?;
        forward_with::<T>(logits, batch, source, residence, gradient, start)
    })
}

/// Loss and gradient in one launch, the gradient written over the logits.
pub(super) fn forward_over(
    storage: &mut CudaStorage,
    layout: &Layout,
    batch: &Batch,
    source: &TemperatureSource,
    residence: &Residence,
) -> Result<(LossOutput, Option<Stepped>)> {
    let device = storage.device.clone();
    let on_device = upload(&device, batch, residence)?;
    let (stride, width) = matrix_shape(LOGITS, layout)?;
    let forwarded = with_device_element!(storage.dtype(), LOGITS, T => {
        let values = storage.as_cuda_slice_mut::<T>()?;
        let start = layout.start_offset().min(values.len());
        let mut logits = DeviceLogits { values: values.slice_mut(start..), stride, width };
        at_temperature(source, next(on_device.plan()), |temperature| {
            on_device.forward_over(&mut logits, temperature)
        })
    })?;
    detached(&device, on_device, forwarded, source, batch, layout)
}

/// The launch that writes a gradient too, into `gradient` from element `start` on.
fn forward_with<T: DeviceElement>(
    (storage, layout): (&CudaStorage, &Layout),
    batch: &Batch,
    source: &TemperatureSource,
    residence: &Residence,
    gradient: &mut CudaSlice<T>,
    start: usize,
) -> Result<(LossOutput, Option<Stepped>)> {
    let device = &storage.device;
    let on_device = upload(device, batch, residence)?;
    let logits = view::<T>(storage, layout)?;
    let start = start.min(gradient.len());
    let mut room = gradient.slice_mut(start..);
    let forwarded = at_temperature(source, next(on_device.plan()), |temperature| {
        on_device.forward(&logits, temperature, Some(&mut room))
    })?;
    detached(device, on_device, forwarded, source, batch, layout)
}

/// The output of a pass that autograd does not see.
fn detached(
    device: &CudaDevice,
    on_device: DeviceBatch,
    forwarded: Forwarded,
    source: &TemperatureSource,
    batch: &Batch,
    layout: &Layout,
) -> Result<(LossOutput, Option<Stepped>)> {
    let (left, loss) = left(device, on_device, forwarded, source);
    let loss = from_storage(loss, loss_shape(batch, layout.dims()));
    Ok((left.output(loss, batch)?, left.stepped()))
}

fn next(rows: &DenseRows) -> impl Fn(&Temperature) -> Result<TemperaturePlan> {
    |temperature| rows.next(temperature)
}

fn upload(device: &CudaDevice, batch: &Batch, residence: &Residence) -> Result<DeviceBatch> {
    let sets = residence.sets(device, &batch.sets)?;
    DeviceBatch::new(device, sets, DenseRows::new(batch))
}

fn left(
    device: &CudaDevice,
    batch: DeviceBatch,
    forwarded: Forwarded,
    source: &TemperatureSource,
) -> (Left, CudaStorage) {
    let left = Left {
        batch,
        softmaxes: forwarded.softmaxes,
        measured: Measured::new(device, forwarded.temperature, forwarded.statistics, source),
    };
    let loss = CudaStorage::wrap_cuda_slice(forwarded.loss, device.clone());
    (left, loss)
}

/// The logits that a tensor is.
pub(crate) fn view<'a, T: DeviceElement>(
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<DeviceLogits<CudaView<'a, T>>> {
    let (stride, width) = matrix_shape(LOGITS, layout)?;
    Ok(DeviceLogits {
        values: part(storage.as_cuda_slice::<T>()?, layout),
        stride,
        width,
    })
}
