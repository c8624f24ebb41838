//! From candle's CUDA storage to the views that the backend takes, and back.

use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Layout, Shape, Storage, Tensor};
use cudarc::driver::{CudaSlice, CudaView};

use super::LossOutput;
use super::temperature::{Stepped, TemperatureSource};
use crate::backend::batch::Batch;
use crate::backend::cuda::dense::PassTemperature;
use crate::backend::launch::TemperaturePlan;
use crate::{Error, Result, Statistics, Temperature};

/// Runs `$body` with `$T` bound to the element type of `$dtype`.
macro_rules! with_device_element {
    ($dtype:expr, $what:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F16 => {
                type $T = half::f16;
                $body
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            other => Err($crate::loss::tensor::unsupported_dtype($what, other)),
        }
    };
}
pub(super) use with_device_element;

/// Launches a pass at the temperature that its source says.
pub(super) fn at_temperature<L>(
    source: &TemperatureSource,
    next: impl Fn(&Temperature) -> Result<TemperaturePlan>,
    launch: impl FnOnce(&PassTemperature) -> Result<L>,
) -> Result<L> {
    let (plan, previous) = match source {
        TemperatureSource::Given(value) => (TemperaturePlan::at(*value), None),
        TemperatureSource::Stepping(temperature, previous) => {
            (next(temperature)?, previous.as_ref())
        }
    };
    let storage = previous.map(Tensor::storage_and_layout);
    let previous = match &storage {
        Some((storage, layout)) => {
            Some(part(cuda("temperature", storage)?.as_cuda_slice()?, layout))
        }
        None => None,
    };
    launch(&PassTemperature { plan, previous })
}

/// What a pass found out of a batch, on its device.
pub(super) struct Measured {
    pub temperature: Tensor,
    /// The statistics and, under BEAR, the sum of the rows' weights.
    measured: Tensor,
    takes_step: bool,
}

impl Measured {
    pub fn new(
        device: &CudaDevice,
        temperature: CudaSlice<f64>,
        statistics: CudaSlice<f64>,
        source: &TemperatureSource,
    ) -> Self {
        Self {
            temperature: tensor(device, temperature, ()),
            measured: tensor(device, statistics, Statistics::LENGTH + 1),
            takes_step: matches!(
                source,
                TemperatureSource::Stepping(Temperature::Adaptive(_), _)
            ),
        }
    }

    pub fn output(&self, loss: Tensor, batch: &Batch) -> Result<LossOutput> {
        Ok(LossOutput {
            loss,
            temperature: self.temperature.clone(),
            statistics: self.measured.narrow(0, 0, Statistics::LENGTH)?,
            bear_weight: (batch.bear)
                .map(|_| self.measured.get(Statistics::LENGTH))
                .transpose()?,
            labelled_rows: batch.labelled_rows,
            branching_rows: batch.branching_rows,
        })
    }

    pub fn stepped(&self) -> Option<Stepped> {
        (self.takes_step).then(|| Stepped::OnDevice(self.temperature.clone()))
    }
}

/// What of a storage is a tensor's, from its first element on.
pub(super) fn part<'a, T>(slice: &'a CudaSlice<T>, layout: &Layout) -> CudaView<'a, T> {
    slice.slice(layout.start_offset().min(slice.len())..)
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

pub(super) fn tensor<T: candle_core::cuda_backend::CudaDType>(
    device: &CudaDevice,
    values: CudaSlice<T>,
    shape: impl Into<Shape>,
) -> Tensor {
    from_storage(CudaStorage::wrap_cuda_slice(values, device.clone()), shape)
}

pub(super) fn from_storage(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}
