//! The gradient of the head and its bias.

use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};

use super::{DeviceInputs, DeviceLinear};
use crate::backend::cuda::Buffers;
use crate::backend::cuda::dense::{DeviceElement, uninitialised, upload};
use crate::backend::launch::{LinearHeadBuffers, LinearHeadGradient, LinearShares};
use crate::{Result, TokenSets};

/// What a forward pass leaves for the head's gradient.
pub(crate) struct DeviceShares {
    plan: LinearShares,
    /// The shares, behind them the tokens, and behind those where the shares of each begin.
    words: CudaSlice<u32>,
    /// The errors of the groups.
    errors: CudaSlice<f32>,
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
            errors,
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
            scores: held.read(executor, &shares.errors),
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
            for product in plan.group_products(&buffers) {
                executor.multiply(&product)?;
            }
            executor.launch(&plan.launch(&buffers), Buffers::new())?;
        }
        drop(held);
        Ok([head, bias])
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
