//! The linear operation over cust's buffers.

use cust::memory::{DeviceCopy, DeviceSlice};
use cust::stream::Stream;

use super::memory::{DeviceSets, Forwarded, PassTemperature, address};
use super::work::Work;
use super::{Executor, Logit, driver_error};
use crate::backend::launch::{
    self, DevicePtr, LinearPass, LinearResults, LinearRows, LinearTensors, LinearUpstream, Queue,
};
use crate::{Error, Result, TokenSets};

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
        let losses = self.rows.losses();
        let planned = match &gradients {
            None => launch::LinearGradients::None,
            Some(of) if of.head.is_some() || of.bias.is_some() => {
                launch::LinearGradients::All(self.sets)
            }
            Some(_) => launch::LinearGradients::Direct,
        };
        let pass = LinearPass::new(
            self.rows,
            T::ELEMENT,
            self.width,
            planned,
            self.executor.limits(),
            LinearPass::MOST_SCORES,
        )?;
        let mut left = Forwarded::room(losses)?;
        let mut work = Work::new(self.executor, self.stream);
        let stride = self.width as u64;
        let tensors = LinearTensors {
            hidden: Some(pointer(input.hidden)?),
            hidden_stride: stride,
            head: pointer(input.head)?,
            head_stride: stride,
            bias: input.bias.map(pointer).transpose()?,
            tokens: self.device_sets.view().tokens,
            previous: temperature
                .previous
                .map(|previous| pointer(previous))
                .transpose()?,
        };
        let results = LinearResults {
            loss: pointer(&left.loss)?,
            statistics: pointer(&left.statistics)?,
            temperature: pointer(&left.temperature)?,
            hidden_gradient: match (&gradients, planned) {
                (Some(of), launch::LinearGradients::Direct) => Some(pointer(of.hidden)?),
                _ => None,
            },
        };
        // SAFETY: `results` have the sizes that are asked for, and all that `work` holds is freed by
        // `cuMemFree`, which waits for the device; for the rest the caller answers.
        unsafe {
            // Before any launch, for which a copy would wait.
            let ones = vec![1f32; losses];
            let [upstream] = work.upload([("upstream", bytemuck::cast_slice(&ones))])?;
            let forwarded = pass.forward(&mut work, &tensors, temperature.plan, &results)?;
            if let (Some(of), launch::LinearGradients::All(_), Some(loss)) =
                (gradients, planned, upstream)
            {
                let upstream = LinearUpstream {
                    loss,
                    temperature: results.temperature,
                };
                let hidden = pointer(of.hidden)?;
                pass.hidden_gradient(&mut work, &forwarded, upstream, hidden)?;
                let of_head = [zeroed(self.stream, of.head)?, zeroed(self.stream, of.bias)?];
                pass.head_gradient(&mut work, &forwarded, upstream, of_head)?;
            }
        }
        left.scratch = work.into_held();
        Ok(left)
    }
}

fn pointer<T: DeviceCopy>(slice: &DeviceSlice<T>) -> Result<DevicePtr> {
    address(slice).ok_or_else(|| Error::Malformed {
        what: "slice",
        detail: "it has no address on the device".into(),
    })
}

/// The address of a gradient that is wanted, in which there will be zeros.
///
/// # Safety
/// As [`LinearOperation::run`].
unsafe fn zeroed<T: Logit>(
    stream: &Stream,
    gradient: Option<&mut DeviceSlice<T>>,
) -> Result<Option<DevicePtr>> {
    let Some(gradient) = gradient else {
        return Ok(None);
    };
    // SAFETY: the caller's promise; zeros are set in the order of the stream.
    unsafe { gradient.set_zero_async(stream) }.map_err(driver_error)?;
    Ok(Some(pointer(gradient)?))
}
