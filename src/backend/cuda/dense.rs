//! The dense operation on a CUDA device: uploads a batch, and launches the plans of
//! `launch::dense`.

use std::sync::Arc;

use candle_core::CudaDevice;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, CudaViewMut, DevicePtr, DeviceRepr,
};
use half::{bf16, f16};

use super::{Buffers, Executor};
use crate::backend::launch::{
    DenseBackward, DenseBackwardBuffers, DenseForward, DenseForwardBuffers, DenseInputs, DenseRows,
    DenseTemperature, Element, GradientView, TokenSetsView,
};
use crate::{Result, Statistics, TokenSets};

/// A type of logits that kernels are compiled for.
pub(crate) trait DeviceElement: CudaDType + DeviceRepr {
    const ELEMENT: Element;
}

impl DeviceElement for f32 {
    const ELEMENT: Element = Element::F32;
}
impl DeviceElement for f16 {
    const ELEMENT: Element = Element::F16;
}
impl DeviceElement for bf16 {
    const ELEMENT: Element = Element::Bf16;
}

/// Token sets in the memory of a device.
pub(crate) struct DeviceSets {
    /// Offsets and tokens; `None` for the whole vocabulary.
    listed: Option<[CudaSlice<u32>; 2]>,
    vocabulary: u64,
}

impl DeviceSets {
    pub fn new(device: &CudaDevice, sets: &TokenSets) -> Result<Self> {
        let listed = match sets.as_raw() {
            Some((offsets, tokens)) => Some([upload(device, offsets)?, upload(device, tokens)?]),
            None => None,
        };
        Ok(Self {
            listed,
            vocabulary: u64::from(sets.max_token()) + 1,
        })
    }

    fn view<'a>(&'a self, executor: &'a Executor, buffers: &mut Buffers<'a>) -> TokenSetsView {
        let mut address = |index: usize| {
            (self.listed.as_ref()).map_or(0, |listed| buffers.read(executor, &listed[index]))
        };
        TokenSetsView {
            offsets: address(0),
            tokens: address(1),
            vocabulary: self.vocabulary,
        }
    }
}

/// A batch in the memory of a device.
pub(crate) struct DeviceBatch {
    executor: Executor,
    device: CudaDevice,
    plan: DenseRows,
    sets: Arc<DeviceSets>,
    /// Four u32 a row.
    rows: CudaSlice<u32>,
    idle: CudaSlice<u32>,
}

/// Logits `[N, V]`, rows `stride` elements apart.
pub(crate) struct DeviceLogits<'a, T> {
    pub values: CudaView<'a, T>,
    pub stride: usize,
    pub width: usize,
}

/// What a forward pass leaves on the device.
pub(crate) struct Forwarded {
    /// One number, or one a position.
    pub loss: CudaSlice<f32>,
    pub temperature: CudaSlice<f64>,
    /// The fields of [`Statistics`].
    pub statistics: CudaSlice<f64>,
    /// For the backward pass.
    pub softmaxes: CudaSlice<f32>,
}

impl DeviceBatch {
    pub fn new(device: &CudaDevice, sets: Arc<DeviceSets>, plan: DenseRows) -> Result<Self> {
        Ok(Self {
            executor: Executor::new(device)?,
            device: device.clone(),
            sets,
            rows: upload(device, bytemuck::cast_slice(&plan.rows))?,
            idle: upload(device, &plan.idle)?,
            plan,
        })
    }

    pub fn plan(&self) -> &DenseRows {
        &self.plan
    }

    /// Statistics, temperature, loss and, where there is room for one, the gradient `[N, V]`.
    /// `previous` is the temperature so far, where it is on the device.
    pub fn forward<T: DeviceElement>(
        &self,
        logits: &DeviceLogits<T>,
        temperature: DenseTemperature,
        previous: Option<&CudaSlice<f64>>,
        gradient: Option<&mut CudaViewMut<T>>,
    ) -> Result<Forwarded> {
        let (executor, device) = (&self.executor, &self.device);
        let plan = DenseForward::new(
            &self.plan,
            T::ELEMENT,
            logits.width,
            temperature,
            gradient.is_some(),
            executor.limits(),
        )?;
        let mut arrived = device.alloc_zeros::<u32>(1)?;
        let mut partials = uninitialised::<f64>(device, plan.partials())?;
        let softmaxes = self.plan.counting() * DenseRows::SOFTMAX_BYTES / size_of::<f32>();
        let mut left = Forwarded {
            loss: uninitialised(device, self.plan.losses())?,
            temperature: uninitialised(device, 1)?,
            statistics: uninitialised(device, Statistics::LENGTH)?,
            softmaxes: uninitialised(device, softmaxes)?,
        };
        let mut buffers = Buffers::new();
        let inputs = self.inputs(logits, &mut buffers);
        let outputs = DenseForwardBuffers {
            gradient: gradient.map(|values| GradientView {
                address: buffers.write(executor, values),
                row_stride: logits.width as u64,
            }),
            softmaxes: buffers.write(executor, &mut left.softmaxes),
            loss: buffers.write(executor, &mut left.loss),
            partials: buffers.write(executor, &mut partials),
            statistics: buffers.write(executor, &mut left.statistics),
            temperature: buffers.write(executor, &mut left.temperature),
            previous: previous.map_or(0, |previous| buffers.read(executor, previous)),
            arrived: buffers.write(executor, &mut arrived),
        };
        let launch = plan.launch(&inputs, &outputs);
        // SAFETY: the parameters are the plan's, and the buffers have the sizes that it asks for.
        unsafe { executor.launch(&launch, buffers) }?;
        Ok(left)
    }

    /// Writes the gradient `[N, V]` from what a forward pass of the same logits left.
    pub fn backward<T: DeviceElement>(
        &self,
        logits: &DeviceLogits<T>,
        softmaxes: &CudaSlice<f32>,
        temperature: &CudaSlice<f64>,
        upstream: &CudaView<f32>,
        gradient: &mut CudaSlice<T>,
    ) -> Result<()> {
        let executor = &self.executor;
        let plan = DenseBackward::new(&self.plan, T::ELEMENT, logits.width, executor.limits())?;
        let Some(plan) = plan else {
            return Ok(());
        };
        let mut buffers = Buffers::new();
        let inputs = self.inputs(logits, &mut buffers);
        let outputs = DenseBackwardBuffers {
            gradient: GradientView {
                address: buffers.write(executor, gradient),
                row_stride: logits.width as u64,
            },
            softmaxes: buffers.read(executor, softmaxes),
            temperature: buffers.read(executor, temperature),
            upstream: buffers.read(executor, upstream),
        };
        let launch = plan.launch(&inputs, &outputs);
        // SAFETY: as in `forward`.
        unsafe { executor.launch(&launch, buffers) }
    }

    fn inputs<'a, T>(
        &'a self,
        logits: &'a DeviceLogits<'a, T>,
        buffers: &mut Buffers<'a>,
    ) -> DenseInputs
    where
        CudaView<'a, T>: DevicePtr<T>,
    {
        DenseInputs {
            logits: buffers.read(&self.executor, &logits.values),
            row_stride: logits.stride as u64,
            rows: buffers.read(&self.executor, &self.rows),
            idle: buffers.read(&self.executor, &self.idle),
            sets: self.sets.view(&self.executor, buffers),
        }
    }
}

/// Memory for `length` elements, for a kernel to write all of.
pub(crate) fn uninitialised<T: DeviceRepr>(
    device: &CudaDevice,
    length: usize,
) -> Result<CudaSlice<T>> {
    // SAFETY: whoever asks for the memory writes it before anyone reads it. A device has no buffer
    // without elements.
    Ok(unsafe { device.alloc::<T>(length.max(1)) }?)
}

fn upload(device: &CudaDevice, values: &[u32]) -> Result<CudaSlice<u32>> {
    // A device has no buffer without elements.
    let values = if values.is_empty() { &[0] } else { values };
    Ok(device.clone_htod(values)?)
}
