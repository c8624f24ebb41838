//! The gradient of the head and its bias.

use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};

use super::{DeviceInputs, DeviceLinear};
use crate::backend::cuda::Buffers;
use crate::backend::cuda::dense::{DeviceElement, uninitialised, upload};
use crate::backend::launch::{
    DenseTemperature, LinearChunks, LinearForwardBuffers, LinearGather, LinearHeadBuffers,
    LinearHeadGradient, LinearInputs, LinearShares,
};
use crate::{Result, TokenSets};

/// What a forward pass leaves for the head's gradient.
pub(crate) struct DeviceShares {
    plan: LinearShares,
    /// The shares, behind them the tokens, and behind those where the shares of each begin.
    words: CudaSlice<u32>,
    /// The errors of the groups; `None` where they are made once more, chunk by chunk.
    errors: Option<CudaSlice<f32>>,
}

/// Which gradients are made: of the head `[vocabulary, H]`, of the bias `[vocabulary]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WantedOfHead {
    pub vocabulary: usize,
    pub head: bool,
    pub bias: bool,
}

impl DeviceLinear {
    /// What the head's gradient needs besides the inputs, with the errors of a forward pass that had
    /// a gradient.
    pub fn shares(&self, sets: &TokenSets, errors: CudaSlice<f32>) -> Result<DeviceShares> {
        let plan = LinearShares::new(&self.plan, sets);
        let shares = bytemuck::cast_slice(&plan.shares);
        let words = [shares, &plan.tokens, &plan.starts].concat();
        Ok(DeviceShares {
            words: upload(&self.device, &words)?,
            plan,
            errors: (!self.plan.is_whole()).then_some(errors),
        })
    }

    /// Makes the gradients of head and bias, where they are wanted.
    pub fn head_gradient<T: DeviceElement>(
        &self,
        tensors: &DeviceInputs<T>,
        shares: &DeviceShares,
        temperature: &CudaSlice<f64>,
        upstream: &CudaView<f32>,
        wanted: WantedOfHead,
    ) -> Result<[Option<CudaSlice<T>>; 2]> {
        let (executor, device) = (&self.executor, &self.device);
        let width = tensors.width;
        let mut head = zeros(device, wanted.head, wanted.vocabulary * width)?;
        let mut bias = zeros(device, wanted.bias, wanted.vocabulary)?;
        let limits = executor.limits();
        let plan = LinearHeadGradient::new(&self.plan, &shares.plan, T::ELEMENT, width, limits)?;
        let Some(plan) = plan else {
            return Ok([head, bias]);
        };
        let mut scaled = uninitialised::<f32>(device, plan.scaled())?;
        let mut errors = uninitialised::<f32>(device, plan.errors())?;
        let mut products = uninitialised::<f32>(device, plan.products())?;
        // Held until all is issued.
        let mut held = Buffers::new();
        let inputs = self.inputs(tensors, &mut held);
        let words = held.read(executor, &shares.words);
        let tokens = words + size_of_val(&shares.plan.shares[..]) as u64;
        let buffers = LinearHeadBuffers {
            shares: words,
            tokens,
            starts: tokens + size_of_val(&shares.plan.tokens[..]) as u64,
            scores: (shares.errors.as_ref()).map_or(0, |errors| held.read(executor, errors)),
            scaled: held.write(executor, &mut scaled),
            errors: held.write(executor, &mut errors),
            products: held.write(executor, &mut products),
            temperature: held.read(executor, temperature),
            upstream: held.read(executor, upstream),
            head: (head.as_mut()).map_or(0, |head| held.write(executor, head)),
            bias: (bias.as_mut()).map_or(0, |bias| held.write(executor, bias)),
        };
        // SAFETY: as in `forward`.
        unsafe {
            executor.launch(&plan.errors_launch(&inputs, &buffers), Buffers::new())?;
            if self.plan.is_whole() {
                self.multiply_chunks::<T>(&inputs, width, &buffers)?;
            } else {
                for product in plan.group_products(&buffers) {
                    executor.multiply(&product)?;
                }
            }
            executor.launch(&plan.launch(&buffers), Buffers::new())?;
        }
        drop(held);
        Ok([head, bias])
    }

    /// The products of rows over the whole vocabulary, whose errors are made once more.
    ///
    /// # Safety
    /// The addresses of `inputs` and `head` must be of buffers that are held until all is issued.
    unsafe fn multiply_chunks<T: DeviceElement>(
        &self,
        inputs: &LinearInputs,
        width: usize,
        head: &LinearHeadBuffers,
    ) -> Result<()> {
        let (executor, device, rows) = (&self.executor, &self.device, &self.plan);
        let limits = executor.limits();
        // The temperature is where the forward pass left it.
        let given = DenseTemperature::at(1.0);
        let plan = LinearChunks::new(rows, T::ELEMENT, width, given, false, limits)?;
        let gather = LinearGather::new(rows, T::ELEMENT, width, limits)?;
        let mut group_hidden = uninitialised::<T>(device, rows.grouped() * width)?;
        let mut scores = uninitialised::<f32>(device, plan.scores())?;
        let mut partials = uninitialised::<f64>(device, plan.partials())?;
        let mut arrived = device.alloc_zeros::<u32>(plan.arrived())?;
        let mut held = Buffers::new();
        let buffers = LinearForwardBuffers {
            group_hidden: held.write(executor, &mut group_hidden),
            group_head: 0,
            frozen: Vec::new(),
            scores: held.write(executor, &mut scores),
            errors: 0,
            gradient: 0,
            loss: 0,
            partials: held.write(executor, &mut partials),
            statistics: 0,
            temperature: head.temperature,
            previous: 0,
            arrived: held.write(executor, &mut arrived),
        };
        // SAFETY: the caller's promise, and as in `forward`.
        unsafe {
            if let Some(gather) = gather {
                let launch = gather.launch(inputs, buffers.group_hidden, 0);
                executor.launch(&launch, Buffers::new())?;
            }
            self.issue(&plan.head_steps(inputs, &buffers, head))?;
        }
        drop(held);
        Ok(())
    }
}

fn zeros<T: DeviceElement>(
    device: &CudaDevice,
    wanted: bool,
    length: usize,
) -> Result<Option<CudaSlice<T>>> {
    let zeros = wanted.then(|| device.alloc_zeros::<T>(length.max(1)));
    Ok(zeros.transpose()?)
}
