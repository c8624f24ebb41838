//! Conversions from candle's CUDA storage to the addresses that launch plans take, and back. Nothing here waits for the device.

use std::ops::Deref;
use std::sync::Arc;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice as Slice};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Shape, Storage, Tensor};
use cudarc::driver::CudaSlice;

use super::LossOutput;
use super::call::LossCall;
use super::temperature::{Stepped, TemperatureSource};
use super::tensor::{matrix_shape, unsupported_dtype};
use crate::backend::batch::Batch;
use crate::backend::cuda::Executor;
use crate::backend::cuda::sets::DeviceSets;
use crate::backend::cuda::stream::{CandleStream, uninitialised};
use crate::backend::launch::{
    BatchTotals, DeviceMatrix, DevicePtr, Element, ForwardResults, TemperaturePlan, TokenSetsView,
    Upstream,
};
use crate::{Error, Result, Statistics, Temperature};

/// A tensor as candle passes it to a custom op.
pub(crate) type Stored<'a> = (&'a CudaStorage, &'a Layout);

/// The inputs of a forward pass besides its tensors.
pub(super) struct ForwardInputs {
    pub sets: TokenSetsView,
    pub temperature: TemperaturePlan,
    /// The temperature before the pass, one f64; `None` if it is not on the device.
    pub previous: Option<DevicePtr>,
}

/// What a forward pass saves for the caller and for the backward pass.
pub(super) struct SavedForward<S> {
    pub executor: Executor,
    sets: Arc<DeviceSets>,
    /// The plan of the pass, and what it saved.
    pub saved: S,
    /// The memory of `saved`.
    kept: Vec<CudaSlice<u32>>,
    temperature: Tensor,
    /// The statistics and, under BEAR, the sum of the rows' weights.
    statistics: Tensor,
    /// Whether the temperature has taken a step.
    stepped: bool,
    /// The gradient, if the forward pass computed it.
    pub gradient: Option<Tensor>,
}

/// Issues a forward pass with `issue` to a stream to which the tensors of the caller are added. Returns what it saves, and the loss.
pub(super) fn issue_forward<S>(
    stream: CandleStream,
    call: &LossCall,
    totals: &BatchTotals,
    issue: impl FnOnce(&mut CandleStream, &ForwardInputs, &ForwardResults) -> Result<S>,
) -> Result<(SavedForward<S>, CudaStorage)> {
    let executor = stream.executor();
    let device = executor.device();
    let sets = call.device_sets.on(device, &call.batch.sets)?;
    let (temperature, previous) = match &call.source {
        TemperatureSource::Given(value) => (TemperaturePlan::at(*value), None),
        TemperatureSource::Stepping(temperature, previous) => {
            (totals.next(temperature)?, previous.as_ref())
        }
    };
    let previous = previous.map(Tensor::storage_and_layout);
    let mut loss = uninitialised::<f32>(device, totals.losses())?;
    let mut used = uninitialised::<f64>(device, 1)?;
    let mut statistics = uninitialised::<f64>(device, Statistics::LENGTH + 1)?;
    // This shortens the lifetime of the stream, as the buffers added here are dropped before those of the caller.
    let mut stream: CandleStream = stream;
    let inputs = ForwardInputs {
        sets: sets.view(&mut stream),
        temperature,
        previous: match &previous {
            Some(previous) => read_locked(&mut stream, "temperature", previous)?,
            None => None,
        },
    };
    let results = ForwardResults {
        loss: require_address(stream.write(&mut loss))?,
        statistics: require_address(stream.write(&mut statistics))?,
        temperature: require_address(stream.write(&mut used))?,
    };
    let saved = issue(&mut stream, &inputs, &results)?;
    let kept = stream.into_kept();
    let saved = SavedForward {
        executor: executor.clone(),
        sets,
        saved,
        kept,
        temperature: tensor(device, used, ()),
        statistics: tensor(device, statistics, Statistics::LENGTH + 1),
        stepped: matches!(
            call.source,
            TemperatureSource::Stepping(Temperature::Adaptive(_), _)
        ),
        gradient: None,
    };
    Ok((saved, CudaStorage::wrap_cuda_slice(loss, device.clone())))
}

impl<S> SavedForward<S> {
    pub fn output(&self, loss: Tensor, batch: &Batch) -> Result<(LossOutput, Option<Stepped>)> {
        let output = LossOutput {
            loss,
            temperature: self.temperature.clone(),
            statistics: self.statistics.narrow(0, 0, Statistics::LENGTH)?,
            bear_weight: (batch.bear)
                .map(|_| self.statistics.get(Statistics::LENGTH))
                .transpose()?,
            labelled_rows: batch.labelled_rows,
            branching_rows: batch.branching_rows,
        };
        let stepped = (self.stepped).then(|| Stepped::OnDevice(self.temperature.clone()));
        Ok((output, stepped))
    }

    /// Calls `issue` with a stream to which the memory that the forward pass saved is added, and with the address of the upstream
    /// gradient.
    pub fn issue_backward<'a>(
        &'a self,
        stream: CandleStream<'a>,
        upstream: &Tensor,
        issue: impl FnOnce(&mut CandleStream, &Upstream) -> Result<()>,
    ) -> Result<()> {
        let upstream = upstream.to_dtype(DType::F32)?.contiguous()?;
        let [upstream, temperature] =
            [&upstream, &self.temperature].map(Tensor::storage_and_layout);
        let mut stream: CandleStream = stream;
        for memory in &self.kept {
            stream.read(memory);
        }
        self.sets.view(&mut stream);
        let upstream = Upstream {
            loss: require_address(read_locked(&mut stream, "upstream gradient", &upstream)?)?,
            temperature: require_address(read_locked(&mut stream, "temperature", &temperature)?)?,
        };
        issue(&mut stream, &upstream)
    }
}

/// Returns the element type of the kernels for a dtype.
pub(crate) fn element(what: &'static str, dtype: DType) -> Result<Element> {
    match dtype {
        DType::F32 => Ok(Element::F32),
        DType::F16 => Ok(Element::F16),
        DType::BF16 => Ok(Element::Bf16),
        other => Err(Error::Unsupported {
            what,
            expected: "dtype f32, f16 or bf16 on CUDA".into(),
            actual: format!("{other:?}"),
        }),
    }
}

/// Adds a tensor that launches read, and returns it as a matrix with its leading dimensions flattened to one.
pub(crate) fn read_matrix<'a>(
    stream: &mut CandleStream<'a>,
    what: &'static str,
    tensor: Stored<'a>,
) -> Result<DeviceMatrix> {
    Ok(DeviceMatrix {
        address: read(stream, what, tensor)?,
        row_stride: matrix_shape(what, tensor.1)?.0 as u64,
    })
}

/// Adds a tensor that launches read, and returns the address of its first element.
pub(super) fn read<'a>(
    stream: &mut CandleStream<'a>,
    what: &'static str,
    (storage, layout): Stored<'a>,
) -> Result<Option<DevicePtr>> {
    let first = match &storage.slice {
        Slice::F32(slice) => stream.read(slice),
        Slice::F16(slice) => stream.read(slice),
        Slice::BF16(slice) => stream.read(slice),
        Slice::F64(slice) => stream.read(slice),
        _ => return Err(unsupported_dtype(what, storage.dtype())),
    };
    Ok(element_of(first, storage.dtype(), layout.start_offset()))
}

/// Adds a storage that launches write, and returns the address of its element `start`.
pub(super) fn write<'a>(
    stream: &mut CandleStream<'a>,
    what: &'static str,
    storage: &'a mut CudaStorage,
    start: usize,
) -> Result<Option<DevicePtr>> {
    let dtype = storage.dtype();
    let first = match &mut storage.slice {
        Slice::F32(slice) => stream.write(slice),
        Slice::F16(slice) => stream.write(slice),
        Slice::BF16(slice) => stream.write(slice),
        _ => return Err(unsupported_dtype(what, dtype)),
    };
    Ok(element_of(first, dtype, start))
}

fn element_of(first: Option<DevicePtr>, dtype: DType, index: usize) -> Option<DevicePtr> {
    first.map(|first| first.offset((index * dtype.size_in_bytes()) as u64))
}

/// Does the same as [`read`] for a tensor whose storage is locked.
fn read_locked<'a>(
    stream: &mut CandleStream<'a>,
    what: &'static str,
    (storage, layout): &'a (impl Deref<Target = Storage>, &Layout),
) -> Result<Option<DevicePtr>> {
    read(stream, what, (cuda(what, storage)?, layout))
}

/// Returns the address of a buffer, and an error for a buffer without elements.
pub(crate) fn require_address(address: Option<DevicePtr>) -> Result<DevicePtr> {
    address.ok_or_else(|| Error::Malformed {
        what: "buffer",
        detail: "it has no address on the device".into(),
    })
}

pub(crate) fn cuda<'a>(what: &'static str, storage: &'a Storage) -> Result<&'a CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => Err(Error::Unsupported {
            what,
            expected: "a tensor on CUDA".into(),
            actual: "a tensor elsewhere".into(),
        }),
    }
}

/// Allocates uninitialised memory for a tensor of the same shape and dtype.
pub(super) fn uninitialised_like(
    device: &CudaDevice,
    (storage, layout): Stored,
) -> Result<CudaStorage> {
    let elements = Shape::from(layout.shape().elem_count().max(1));
    // SAFETY: a kernel writes the memory before it is read. The driver does not allocate buffers of 0 bytes.
    Ok(unsafe { device.alloc_uninit(&elements, storage.dtype()) }?)
}

fn tensor<T: CudaDType>(
    device: &CudaDevice,
    values: CudaSlice<T>,
    shape: impl Into<Shape>,
) -> Tensor {
    from_storage(CudaStorage::wrap_cuda_slice(values, device.clone()), shape)
}

pub(super) fn from_storage(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}
