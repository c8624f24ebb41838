//! The linear operation on a CUDA device: uploads a batch, and runs the plans of `launch::linear`.

mod head_gradient;

use std::sync::Arc;

use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};

pub(crate) use head_gradient::{DeviceShares, WantedOfHead};

use super::dense::{DeviceElement, DeviceSets, PassTemperature, uninitialised, upload};
use super::{Buffers, Executor};
use crate::backend::launch::{
    LinearBackward, LinearBackwardBuffers, LinearChunks, LinearForwardBuffers, LinearGather,
    LinearInputs, LinearRow, LinearRows, LinearStep,
};
use crate::{Result, Statistics};

/// A batch in the memory of a device.
pub(crate) struct DeviceLinear {
    executor: Executor,
    device: CudaDevice,
    plan: LinearRows,
    sets: Arc<DeviceSets>,
    /// The rows, behind them the idle positions, and behind those what is gathered.
    words: CudaSlice<u32>,
}

/// Rows `stride` elements apart.
pub(crate) struct DeviceMatrix<'a, T> {
    pub values: CudaView<'a, T>,
    pub stride: usize,
}

/// What a pass looks at.
pub(crate) struct DeviceInputs<'a, T> {
    pub width: usize,
    pub hidden: DeviceMatrix<'a, T>,
    pub head: DeviceMatrix<'a, T>,
    pub bias: Option<CudaView<'a, T>>,
    /// For each of [`LinearRows::grouped_sets`], what a frozen head has gathered of it, for a forward
    /// pass.
    pub frozen: Vec<Option<CudaView<'a, T>>>,
}

/// What a forward pass leaves on the device.
pub(crate) struct LinearForwarded {
    /// One number, or one a position.
    pub loss: CudaSlice<f32>,
    pub temperature: CudaSlice<f64>,
    /// The fields of [`Statistics`].
    pub statistics: CudaSlice<f64>,
    /// The unscaled gradient, row by row, for the backward pass.
    pub gradient: CudaSlice<f32>,
    /// The errors of the groups, for the head's gradient.
    pub errors: CudaSlice<f32>,
}

impl DeviceLinear {
    pub fn new(device: &CudaDevice, sets: Arc<DeviceSets>, plan: LinearRows) -> Result<Self> {
        let rows = bytemuck::cast_slice(&plan.rows);
        let words = [rows, &plan.idle, &plan.gathered].concat();
        Ok(Self {
            executor: Executor::new(device)?,
            device: device.clone(),
            plan,
            sets,
            words: upload(device, &words)?,
        })
    }

    pub fn plan(&self) -> &LinearRows {
        &self.plan
    }

    /// Statistics, temperature, loss and, where it is wanted, what the gradient is made of.
    pub fn forward<T: DeviceElement>(
        &self,
        tensors: &DeviceInputs<T>,
        temperature: &PassTemperature,
        with_gradient: bool,
    ) -> Result<LinearForwarded> {
        let (executor, device, rows) = (&self.executor, &self.device, &self.plan);
        let (width, limits) = (tensors.width, executor.limits());
        let plan = LinearChunks::new(
            rows,
            T::ELEMENT,
            width,
            temperature.plan,
            with_gradient,
            limits,
        )?;
        let gather = LinearGather::new(rows, T::ELEMENT, width, limits)?;
        let mut group_hidden = uninitialised::<T>(device, rows.grouped() * width)?;
        let mut group_head = uninitialised::<T>(device, rows.gathered_head_rows() * width)?;
        let mut errors = uninitialised::<T>(device, plan.errors())?;
        let mut partials = uninitialised::<f64>(device, plan.partials())?;
        let mut arrived = device.alloc_zeros::<u32>(plan.arrived())?;
        let mut left = LinearForwarded {
            loss: uninitialised(device, rows.losses())?,
            temperature: uninitialised(device, 1)?,
            statistics: uninitialised(device, Statistics::LENGTH)?,
            gradient: uninitialised(device, plan.gradient())?,
            errors: uninitialised(device, plan.scores())?,
        };
        // Held until all is issued.
        let mut held = Buffers::new();
        let inputs = self.inputs(tensors, &mut held);
        let previous = temperature.previous.as_ref();
        let mut frozen = Vec::with_capacity(tensors.frozen.len());
        for rows in &tensors.frozen {
            frozen.push((rows.as_ref()).map_or(0, |rows| held.read(executor, rows)));
        }
        let buffers = LinearForwardBuffers {
            group_hidden: held.write(executor, &mut group_hidden),
            group_head: held.write(executor, &mut group_head),
            frozen,
            scores: held.write(executor, &mut left.errors),
            errors: held.write(executor, &mut errors),
            gradient: held.write(executor, &mut left.gradient),
            loss: held.write(executor, &mut left.loss),
            partials: held.write(executor, &mut partials),
            statistics: held.write(executor, &mut left.statistics),
            temperature: held.write(executor, &mut left.temperature),
            previous: previous.map_or(0, |previous| held.read(executor, previous)),
            arrived: held.write(executor, &mut arrived),
        };
        // SAFETY: the parameters are the plans', the buffers have the sizes that they ask for, and
        // `held` holds them until after the last launch.
        unsafe {
            if let Some(gather) = gather {
                let launch = gather.launch(&inputs, buffers.group_hidden, buffers.group_head);
                executor.launch(&launch, Buffers::new())?;
            }
            self.issue(&plan.forward_steps(&inputs, &buffers))?;
        }
        drop(held);
        Ok(left)
    }

    /// # Safety
    /// As [`Executor::launch`] and [`Executor::multiply`], whose buffers are held elsewhere.
    unsafe fn issue(&self, steps: &[LinearStep]) -> Result<()> {
        for step in steps {
            // SAFETY: the caller's promise.
            unsafe {
                match step {
                    LinearStep::Product(product) => self.executor.multiply(product)?,
                    LinearStep::Launch(launch) => self.executor.launch(launch, Buffers::new())?,
                }
            }
        }
        Ok(())
    }

    /// Writes the gradient of the hidden states `[N, H]` from what a forward pass left.
    pub fn backward<T: DeviceElement>(
        &self,
        width: usize,
        unscaled: &CudaSlice<f32>,
        temperature: &CudaSlice<f64>,
        upstream: &CudaView<f32>,
    ) -> Result<CudaSlice<T>> {
        let executor = &self.executor;
        let mut gradient = uninitialised(&self.device, self.plan.positions() * width)?;
        let plan = LinearBackward::new(&self.plan, T::ELEMENT, width, executor.limits())?;
        let Some(plan) = plan else {
            return Ok(gradient);
        };
        let mut held = Buffers::new();
        let [rows, idle, _] = self.word_addresses(&mut held);
        let buffers = LinearBackwardBuffers {
            gradient: held.write(executor, &mut gradient),
            unscaled: held.read(executor, unscaled),
            temperature: held.read(executor, temperature),
            upstream: held.read(executor, upstream),
        };
        let launch = plan.launch(rows, idle, &buffers);
        // SAFETY: as in `forward`.
        unsafe { executor.launch(&launch, held) }?;
        Ok(gradient)
    }

    fn inputs<'a, T: DeviceElement>(
        &'a self,
        tensors: &'a DeviceInputs<'a, T>,
        held: &mut Buffers<'a>,
    ) -> LinearInputs {
        let [rows, idle, gathered] = self.word_addresses(held);
        let executor = &self.executor;
        let bias = tensors.bias.as_ref();
        LinearInputs {
            hidden: held.read(executor, &tensors.hidden.values),
            hidden_stride: tensors.hidden.stride as u64,
            head: held.read(executor, &tensors.head.values),
            head_stride: tensors.head.stride as u64,
            bias: bias.map_or(0, |bias| held.read(executor, bias)),
            rows,
            idle,
            gathered,
            sets: self.sets.view(executor, held),
        }
    }

    fn word_addresses<'a>(&'a self, held: &mut Buffers<'a>) -> [u64; 3] {
        let rows = held.read(&self.executor, &self.words);
        let idle = rows + (self.plan.rows.len() * size_of::<LinearRow>()) as u64;
        [rows, idle, idle + size_of_val(&self.plan.idle[..]) as u64]
    }
}
