//! The linear operation over cust's buffers.

use cust::memory::DeviceSlice;
use cust::stream::Stream;

use super::memory::{DeviceSets, Forwarded, PassTemperature, address};
use super::work::Work;
use super::{Executor, Logit, driver_error};
use crate::backend::launch::{
    LinearForwarded, LinearPass, LinearResults, LinearRows, LinearTensors, Queue,
};
use crate::{Result, TokenSets};

/// Hidden states, and the head that they are multiplied by.
#[derive(Debug, Clone, Copy)]
pub struct LinearInput<'a, T: Logit> {
    /// `[N, H]`.
    pub hidden: &'a DeviceSlice<T>,
    /// `[V, H]`.
    pub head: &'a DeviceSlice<T>,
    /// `[V]`, if there is one.
    pub bias: Option<&'a DeviceSlice<T>>,
}

/// Where gradients are written, each over all of its slice.
#[derive(Debug)]
pub struct LinearGradients<'a, T: Logit> {
    /// `[N, H]`.
    pub hidden: &'a mut DeviceSlice<T>,
    /// `[V, H]`, where the gradient of the head is wanted.
    pub head: Option<&'a mut DeviceSlice<T>>,
    /// `[V]`, where that of the bias is wanted.
    pub bias: Option<&'a mut DeviceSlice<T>>,
}

/// Where an operation runs, and on what.
pub(crate) struct LinearOperation<'a> {
    pub executor: &'a Executor,
    pub stream: &'a Stream,
    pub sets: &'a TokenSets,
    /// `sets`.
    pub device_sets: &'a DeviceSets,
    pub rows: &'a LinearRows,
    /// H.
    pub width: usize,
}

impl LinearOperation<'_> {
    /// Statistics, temperature, loss and, where there is room for them, gradients.
    ///
    /// # Safety
    /// The rows must name sets of `sets` and ranks in them, tokens must be below the V of the head, and
    /// all slices must have the lengths that are said there, N being the positions of the rows. No work
    /// of other streams may write them (or read the gradients) until the stream has come past this one.
    pub unsafe fn run<T: Logit>(
        &self,
        input: &LinearInput<T>,
        temperature: &PassTemperature,
        gradients: Option<LinearGradients<T>>,
    ) -> Result<Forwarded> {
        let pass = LinearPass::new(
            self.rows,
            T::ELEMENT,
            self.width,
            temperature.plan,
            gradients.is_some(),
            self.executor.limits(),
        )?;
        let mut left = Forwarded::room(self.rows.losses())?;
        let mut work = Work::new(self.executor, self.stream);
        let stride = self.width as u64;
        let tensors = LinearTensors {
            hidden: address(input.hidden),
            hidden_stride: stride,
            head: address(input.head),
            head_stride: stride,
            bias: input.bias.map_or(0, address),
            frozen: Vec::new(),
            sets: self.device_sets.view(),
            previous: temperature.previous.map_or(0, |previous| address(previous)),
        };
        let results = LinearResults {
            loss: address(&left.loss),
            statistics: address(&left.statistics),
            temperature: address(&left.temperature),
        };
        // Before any launch, for which a copy would wait.
        let ones = vec![1f32; self.rows.losses()];
        let [upstream] = work.upload([("upstream", bytemuck::cast_slice(&ones))])?;
        // SAFETY: `results` have the sizes that are asked for, and are freed by `cuMemFree`, which waits
        // for the device; for the rest the caller answers.
        unsafe {
            let forwarded = pass.forward(&mut work, &tensors, &results)?;
            if let Some(gradients) = gradients {
                self.write_gradients(&forwarded, &mut work, upstream, gradients)?;
            }
        }
        left.scratch = work.into_scratch();
        Ok(left)
    }

    /// # Safety
    /// As [`run`](Self::run), whose buffers must still be there.
    unsafe fn write_gradients<T: Logit>(
        &self,
        forwarded: &LinearForwarded,
        work: &mut Work,
        upstream: u64,
        gradients: LinearGradients<T>,
    ) -> Result<()> {
        let of_head = [gradients.head, gradients.bias];
        let wanted = of_head.iter().any(Option::is_some);
        // SAFETY: the caller's promise; zeros are set in the order of the stream.
        unsafe {
            forwarded.hidden_gradient(work, upstream, address(gradients.hidden))?;
            let mut addresses = [0; 2];
            for (address_of, gradient) in addresses.iter_mut().zip(of_head) {
                if let Some(gradient) = gradient {
                    (gradient.set_zero_async(self.stream)).map_err(driver_error)?;
                    *address_of = address(gradient);
                }
            }
            if wanted {
                forwarded.head_gradient(work, self.sets, upstream, addresses)?;
            }
        }
        Ok(())
    }
}
