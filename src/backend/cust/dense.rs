//! The dense operation over cust's buffers.

use cust::memory::DeviceSlice;
use cust::stream::Stream;

use super::memory::{DeviceSets, Forwarded, PassTemperature, address};
use super::work::Work;
use super::{Executor, Logit};
use crate::Result;
use crate::backend::launch::{
    DenseForward, DenseForwardBuffers, DenseInputs, DenseRows, GradientView, Lifetime, Queue,
};

/// Where an operation runs, and on what.
pub(crate) struct DenseOperation<'a> {
    pub executor: &'a Executor,
    pub stream: &'a Stream,
    pub sets: &'a DeviceSets,
    pub rows: &'a DenseRows,
    /// V.
    pub width: usize,
}

impl DenseOperation<'_> {
    /// Statistics, temperature, loss and, where there is room for one, the gradient `[N, V]`.
    ///
    /// # Safety
    /// The rows must name sets of `sets` and ranks in them, tokens must be below `width`, and the
    /// positions of the rows × `width` must be the lengths of `logits` and `gradient`, which no work
    /// of other streams may write (or read, the gradient) until the stream has come past this one.
    pub unsafe fn run<T: Logit>(
        &self,
        logits: &DeviceSlice<T>,
        temperature: &PassTemperature,
        gradient: Option<&mut DeviceSlice<T>>,
    ) -> Result<Forwarded> {
        let (rows, row_stride) = (self.rows, self.width as u64);
        let plan = DenseForward::new(
            rows,
            T::ELEMENT,
            self.width,
            temperature.plan,
            gradient.is_some(),
            self.executor.limits(),
        )?;
        let mut left = Forwarded::room(rows.losses())?;
        let mut work = Work::new(self.executor, self.stream);
        let [words, idle, arrived] = work.upload([
            ("rows", bytemuck::cast_slice(&rows.rows)),
            ("idle", &rows.idle),
            ("arrived", &[0]),
        ])?;
        let [softmaxes, partials] = work.allocate(
            Lifetime::Scratch,
            [
                ("softmaxes", rows.counting() * DenseRows::SOFTMAX_BYTES),
                ("partials", plan.partials() * size_of::<f64>()),
            ],
        )?;
        let launch = plan.launch(
            &DenseInputs {
                logits: address(logits),
                row_stride,
                rows: words,
                idle,
                sets: self.sets.view(),
            },
            &DenseForwardBuffers {
                gradient: gradient.map(|gradient| GradientView {
                    address: address(gradient),
                    row_stride,
                }),
                softmaxes,
                loss: address(&left.loss),
                partials,
                statistics: address(&left.statistics),
                temperature: address(&left.temperature),
                previous: temperature.previous.and_then(|previous| address(previous)),
                arrived,
            },
        );
        // SAFETY: the parameters are the plan's, whose own buffers have the sizes that it asks for and
        // are freed by `cuMemFree`, which waits for the device; for the rest the caller answers.
        unsafe { work.launch(&launch) }?;
        left.scratch = work.into_held();
        Ok(left)
    }
}
