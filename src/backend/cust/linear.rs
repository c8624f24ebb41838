//! The linear operation over cust's buffers.

use cust::memory::DeviceSlice;
use cust::stream::Stream;

use super::memory::{DeviceSets, Forwarded, PassTemperature, address};
use super::work::Work;
use super::{Executor, Logit, driver_error};
use crate::backend::launch::{
    LinearPass, LinearResults, LinearRows, LinearTensors, LinearUpstream, Queue,
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
    pub rows: LinearRows,
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
        self,
        input: &LinearInput<T>,
        temperature: &PassTemperature,
        gradients: Option<LinearGradients<T>>,
    ) -> Result<Forwarded> {
        let wants_head =
            |gradients: &LinearGradients<T>| gradients.head.is_some() || gradients.bias.is_some();
        let losses = self.rows.losses();
        let pass = LinearPass::new(
            self.rows,
            T::ELEMENT,
            self.width,
            gradients.is_some(),
            (gradients.as_ref())
                .is_some_and(wants_head)
                .then_some(self.sets),
            self.executor.limits(),
        )?;
        let mut left = Forwarded::room(losses)?;
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
        let ones = vec![1f32; losses];
        let [loss] = work.upload([("upstream", bytemuck::cast_slice(&ones))])?;
        let upstream = LinearUpstream {
            loss,
            temperature: results.temperature,
        };
        // SAFETY: `results` have the sizes that are asked for, and all that `work` holds is freed by
        // `cuMemFree`, which waits for the device; for the rest the caller answers.
        unsafe {
            let forwarded = pass.forward(&mut work, &tensors, temperature.plan, &results)?;
            if let Some(gradients) = gradients {
                let hidden = address(gradients.hidden);
                pass.hidden_gradient(&mut work, &forwarded, upstream, hidden)?;
                let [head, bias] = [gradients.head, gradients.bias];
                let of_head = [zeroed(self.stream, head)?, zeroed(self.stream, bias)?];
                if of_head != [0, 0] {
                    pass.head_gradient(&mut work, &forwarded, &tensors, upstream, of_head)?;
                }
            }
        }
        left.scratch = work.into_held();
        Ok(left)
    }
}

/// The address of a gradient that is wanted, in which there will be zeros; 0 of another.
///
/// # Safety
/// As [`LinearOperation::run`].
unsafe fn zeroed<T: Logit>(stream: &Stream, gradient: Option<&mut DeviceSlice<T>>) -> Result<u64> {
    let Some(gradient) = gradient else {
        return Ok(0);
    };
    // SAFETY: the caller's promise; zeros are set in the order of the stream.
    unsafe { gradient.set_zero_async(stream) }.map_err(driver_error)?;
    Ok(address(gradient))
}
