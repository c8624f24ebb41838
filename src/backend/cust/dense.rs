//! The dense operation over cust's buffers: uploads a batch, and launches the plans of
//! `launch::dense`.

use cust::memory::{DeviceBuffer, DeviceCopy, DevicePointer, DeviceSlice};
use cust::stream::Stream;

use super::{Executor, Logit, driver_error};
use crate::backend::launch::{
    DenseForward, DenseForwardBuffers, DenseInputs, DenseRows, DenseTemperature, GradientView,
    TokenSetsView,
};
use crate::{Result, Statistics, TokenSets};

/// Token sets in the memory of a device.
pub(crate) struct DeviceSets {
    /// Offsets and tokens; `None` for the whole vocabulary.
    listed: Option<[DeviceBuffer<u32>; 2]>,
    vocabulary: u64,
}

impl DeviceSets {
    pub fn new(sets: &TokenSets) -> Result<Self> {
        let listed = match sets.as_raw() {
            Some((offsets, tokens)) => Some([upload(offsets)?, upload(tokens)?]),
            None => None,
        };
        Ok(Self {
            listed,
            vocabulary: u64::from(sets.max_token()) + 1,
        })
    }

    fn view(&self) -> TokenSetsView {
        let address = |index: usize| {
            (self.listed.as_ref()).map_or(0, |listed| listed[index].as_device_ptr().as_raw())
        };
        TokenSetsView {
            offsets: address(0),
            tokens: address(1),
            vocabulary: self.vocabulary,
        }
    }
}

/// Where a pass runs, and on what.
pub(crate) struct DensePass<'a> {
    pub executor: &'a Executor,
    pub stream: &'a Stream,
    pub sets: &'a DeviceSets,
    pub rows: &'a DenseRows,
    /// V.
    pub width: usize,
}

/// The temperature of a pass, and where it goes on from if that is on the device.
pub(crate) struct PassTemperature<'a> {
    pub plan: DenseTemperature,
    pub previous: Option<&'a DeviceBuffer<f64>>,
}

/// What a forward pass leaves on the device.
pub(crate) struct Forwarded {
    /// One number, or one a position.
    pub loss: DeviceBuffer<f32>,
    pub temperature: DeviceBuffer<f64>,
    /// The fields of [`Statistics`].
    pub statistics: DeviceBuffer<f64>,
    /// What the launch alone needs. To free it waits for the device, so it lives as long as the rest.
    pub scratch: Scratch,
}

/// Memory that a launch uses and nobody reads.
pub(crate) struct Scratch {
    words: DeviceBuffer<u32>,
    softmaxes: DeviceBuffer<f32>,
    partials: DeviceBuffer<f64>,
    arrived: DeviceBuffer<u32>,
}

impl DensePass<'_> {
    /// Statistics, temperature, loss and, where there is room for one, the gradient `[N, V]`.
    ///
    /// # Safety
    /// The rows must name sets of `sets` and ranks in them, tokens must be below `width`, and the
    /// positions of the rows × `width` must be the lengths of `logits` and `gradient`, which no work
    /// of other streams may write (or read, the gradient) until the stream has come past this one.
    pub unsafe fn forward<T: Logit>(
        &self,
        logits: &DeviceSlice<T>,
        temperature: &PassTemperature,
        gradient: Option<&mut DeviceSlice<T>>,
    ) -> Result<Forwarded> {
        let with_gradient = gradient.is_some();
        let limits = self.executor.limits();
        let plan = DenseForward::new(
            self.rows,
            T::ELEMENT,
            self.width,
            temperature.plan,
            with_gradient,
            limits,
        )?;
        let left = self.room(&plan)?;
        let launch = plan.launch(
            &self.inputs(logits.as_device_ptr(), &left.scratch),
            &DenseForwardBuffers {
                gradient: gradient.map(|gradient| GradientView {
                    address: gradient.as_device_ptr().as_raw(),
                    row_stride: self.width as u64,
                }),
                softmaxes: address(&left.scratch.softmaxes),
                loss: address(&left.loss),
                partials: address(&left.scratch.partials),
                statistics: address(&left.statistics),
                temperature: address(&left.temperature),
                previous: temperature.previous.map_or(0, address),
                arrived: address(&left.scratch.arrived),
            },
        );
        // SAFETY: the parameters are the plan's, whose own buffers have the sizes that it asks for and
        // are freed by `cuMemFree`, which waits for the device; for the rest the caller answers.
        unsafe { self.executor.launch(self.stream, &launch) }?;
        Ok(left)
    }

    fn room(&self, plan: &DenseForward) -> Result<Forwarded> {
        let words = [bytemuck::cast_slice(&self.rows.rows), &self.rows.idle].concat();
        let softmaxes = self.rows.counting() * DenseRows::SOFTMAX_BYTES / size_of::<f32>();
        Ok(Forwarded {
            loss: uninitialised(self.rows.losses())?,
            temperature: uninitialised(1)?,
            statistics: uninitialised(Statistics::LENGTH)?,
            scratch: Scratch {
                words: upload(&words)?,
                softmaxes: uninitialised(softmaxes)?,
                partials: uninitialised(plan.partials())?,
                arrived: upload(&[0])?,
            },
        })
    }

    fn inputs<T: Logit>(&self, logits: DevicePointer<T>, scratch: &Scratch) -> DenseInputs {
        let rows = address(&scratch.words);
        DenseInputs {
            logits: logits.as_raw(),
            row_stride: self.width as u64,
            rows,
            idle: rows + size_of_val(&self.rows.rows[..]) as u64,
            sets: self.sets.view(),
        }
    }
}

fn address<T: DeviceCopy>(buffer: &DeviceBuffer<T>) -> u64 {
    buffer.as_device_ptr().as_raw()
}

/// Memory for `length` elements, for a kernel to write all of.
fn uninitialised<T: DeviceCopy>(length: usize) -> Result<DeviceBuffer<T>> {
    // SAFETY: whoever asks for the memory writes it before anyone reads it. A device has no buffer
    // without elements.
    unsafe { DeviceBuffer::uninitialized(length.max(1)) }.map_err(driver_error)
}

fn upload(values: &[u32]) -> Result<DeviceBuffer<u32>> {
    // A device has no buffer without elements.
    let values = if values.is_empty() { &[0] } else { values };
    DeviceBuffer::from_slice(values).map_err(driver_error)
}
