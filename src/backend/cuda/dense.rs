//! The dense operation on a CUDA device: uploads a batch, and launches the plans of
//! `launch::dense`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

use candle_core::CudaDevice;
use candle_core::cuda_backend::CudaDType;
use cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceRepr, ValidAsZeroBits,
};
use half::{bf16, f16};

use super::{Buffers, Executor, driver_error};
use crate::backend::launch::{
    DenseBackward, DenseBackwardBuffers, DenseForward, DenseForwardBuffers, DenseInputs, DenseRows,
    DevicePtr, Element, GradientView, TemperaturePlan, TokenSetsView,
};
use crate::{Result, Statistics, TokenSets};

/// A type of logits that kernels are compiled for.
pub(crate) trait DeviceElement: CudaDType + DeviceRepr + ValidAsZeroBits {
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

/// Token sets in the memory of a device, for any number of host threads.
pub(crate) struct DeviceSets {
    /// `None` for the whole vocabulary.
    listed: Option<ListedSets>,
    vocabulary: u64,
}

/// Offsets and tokens, which one thread uploads and others read in their streams.
///
/// The stream of candle's `Device::new_cuda` is the *per-thread* default stream: one handle, which
/// means another stream in each thread of the host. cudarc orders streams by the events of its slices
/// only in a context that it has created a stream in (`CudaContext::is_managing_stream_synchronization`),
/// which this one is not, and not at all where the caller has disabled event tracking. Nothing then keeps
/// a second thread from reading these sets before the first thread's copy of them is done, nor the last
/// owner from freeing them, in its own stream, while another thread's kernel still reads. The losses that
/// share the sets are each used rightly, by one thread, so the order is this type's business:
///
/// - an event behind the upload, which every other stream waits for;
/// - where another thread than the uploading one has read or drops the sets, a wait for the whole context
///   before they are freed. That is at the end of a loss's life, not of a step.
///
/// The stream of `Device::new_cuda_with_stream` is one for all threads, and orders all of this by itself.
struct ListedSets {
    offsets_and_tokens: [CudaSlice<u32>; 2],
    /// Recorded behind the upload.
    uploaded: CudaEvent,
    /// Whether the upload is known to be done, so that no launch need wait for it.
    is_uploaded: AtomicBool,
    uploaded_by: ThreadId,
    /// Whether another thread has read the sets.
    is_shared: AtomicBool,
}

impl ListedSets {
    fn new(device: &CudaDevice, offsets: &[u32], tokens: &[u32]) -> Result<Self> {
        let offsets_and_tokens = [upload(device, offsets)?, upload(device, tokens)?];
        let uploaded = device.cuda_stream().record_event(None);
        Ok(Self {
            offsets_and_tokens,
            uploaded: uploaded.map_err(driver_error)?,
            is_uploaded: AtomicBool::new(false),
            uploaded_by: std::thread::current().id(),
            is_shared: AtomicBool::new(false),
        })
    }

    /// Keeps what the calling thread issues next in this stream behind the upload.
    fn order(&self, stream: &CudaStream) {
        if is_another(stream, self.uploaded_by) {
            self.is_shared.store(true, Ordering::Relaxed);
        }
        if self.is_uploaded.load(Ordering::Acquire) {
            return;
        }
        if self.uploaded.is_complete() {
            self.is_uploaded.store(true, Ordering::Release);
            return;
        }
        // As cudarc treats the events of its slices: the launch that follows reports the error.
        stream.context().record_err(stream.wait(&self.uploaded));
    }
}

impl Drop for ListedSets {
    fn drop(&mut self) {
        // Relaxed is enough: whoever read the sets held a share of them, and the last to let go of its own
        // sees what the others did before.
        let stream = self.offsets_and_tokens[0].stream();
        if self.is_shared.load(Ordering::Relaxed) || is_another(stream, self.uploaded_by) {
            let context = stream.context();
            context.record_err(context.synchronize());
        }
    }
}

/// Whether this stream is another here than it is in that thread of the host.
pub(crate) fn is_another(stream: &CudaStream, thread: ThreadId) -> bool {
    // CU_STREAM_PER_THREAD
    stream.cu_stream() as usize == 2 && std::thread::current().id() != thread
}

impl DeviceSets {
    pub fn new(device: &CudaDevice, sets: &TokenSets) -> Result<Self> {
        let listed = (sets.as_raw())
            .map(|(offsets, tokens)| ListedSets::new(device, offsets, tokens))
            .transpose()?;
        Ok(Self {
            listed,
            vocabulary: u64::from(sets.max_token()) + 1,
        })
    }

    /// Where the sets are, for a launch that the calling thread issues next.
    pub(super) fn view<'a>(
        &'a self,
        executor: &'a Executor,
        buffers: &mut Buffers<'a>,
    ) -> TokenSetsView {
        let [offsets, tokens] = match &self.listed {
            Some(listed) => {
                listed.order(&executor.stream);
                let [offsets, tokens] = &listed.offsets_and_tokens;
                [
                    buffers.read(executor, offsets),
                    buffers.read(executor, tokens),
                ]
            }
            None => [None; 2],
        };
        TokenSetsView {
            offsets,
            tokens,
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
    /// The rows, and behind them the idle positions.
    words: CudaSlice<u32>,
}

/// Logits `[N, V]`, rows `stride` elements apart: a [`CudaView`], or a [`CudaViewMut`] to be written
/// over.
pub(crate) struct DeviceLogits<V> {
    pub values: V,
    pub stride: usize,
    pub width: usize,
}

/// Where logits are, once the launch is known to wait for them.
struct Located {
    address: Option<DevicePtr>,
    stride: usize,
    width: usize,
}

/// The temperature of a pass, and where it goes on from if that is on the device.
pub(crate) struct PassTemperature<'a> {
    pub plan: TemperaturePlan,
    pub previous: Option<CudaView<'a, f64>>,
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
        let words = [bytemuck::cast_slice(&plan.rows), &plan.idle].concat();
        Ok(Self {
            executor: Executor::new(device)?,
            device: device.clone(),
            plan,
            sets,
            words: upload(device, &words)?,
        })
    }

    pub fn plan(&self) -> &DenseRows {
        &self.plan
    }

    /// Statistics, temperature, loss and, where there is room for one, the gradient `[N, V]`.
    pub fn forward<T: DeviceElement>(
        &self,
        logits: &DeviceLogits<CudaView<T>>,
        temperature: &PassTemperature,
        gradient: Option<&mut CudaViewMut<T>>,
    ) -> Result<Forwarded> {
        let mut buffers = Buffers::new();
        let located = logits.located(buffers.read(&self.executor, &logits.values));
        let gradient = gradient.map(|values| GradientView {
            address: buffers.write(&self.executor, values),
            row_stride: logits.width as u64,
        });
        self.launch(buffers, T::ELEMENT, &located, gradient, temperature)
    }

    /// The same, the gradient written over the logits.
    pub fn forward_over<T: DeviceElement>(
        &self,
        logits: &mut DeviceLogits<CudaViewMut<T>>,
        temperature: &PassTemperature,
    ) -> Result<Forwarded> {
        let mut buffers = Buffers::new();
        let located = Located {
            address: buffers.write(&self.executor, &mut logits.values),
            stride: logits.stride,
            width: logits.width,
        };
        let gradient = GradientView {
            address: located.address,
            row_stride: located.stride as u64,
        };
        self.launch(buffers, T::ELEMENT, &located, Some(gradient), temperature)
    }

    fn launch<'a>(
        &'a self,
        buffers: Buffers<'a>,
        element: Element,
        logits: &Located,
        gradient: Option<GradientView>,
        temperature: &'a PassTemperature,
    ) -> Result<Forwarded> {
        let (executor, device) = (&self.executor, &self.device);
        let plan = DenseForward::new(
            &self.plan,
            element,
            logits.width,
            temperature.plan,
            gradient.is_some(),
            executor.limits(),
        )?;
        let mut arrived = device.alloc_zeros::<u32>(1)?;
        let mut partials = uninitialised::<f64>(device, plan.partials())?;
        let softmaxes = self.plan.counting() * DenseRows::SOFTMAX_BYTES / size_of::<f32>();
        let mut left = Forwarded {
            loss: uninitialised(device, self.plan.losses())?,
            temperature: uninitialised(device, 1)?,
            statistics: uninitialised(device, Statistics::LENGTH + 1)?,
            softmaxes: uninitialised(device, softmaxes)?,
        };
        // Those that this launch alone needs live less long than those that came.
        let mut buffers = buffers;
        let inputs = self.inputs(logits, &mut buffers);
        let previous = temperature.previous.as_ref();
        let outputs = DenseForwardBuffers {
            gradient,
            softmaxes: buffers.write(executor, &mut left.softmaxes),
            loss: buffers.write(executor, &mut left.loss),
            partials: buffers.write(executor, &mut partials),
            statistics: buffers.write(executor, &mut left.statistics),
            temperature: buffers.write(executor, &mut left.temperature),
            previous: previous.and_then(|previous| buffers.read(executor, previous)),
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
        logits: &DeviceLogits<CudaView<T>>,
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
        let located = logits.located(buffers.read(executor, &logits.values));
        let inputs = self.inputs(&located, &mut buffers);
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

    fn inputs<'a>(&'a self, logits: &Located, buffers: &mut Buffers<'a>) -> DenseInputs {
        let rows = buffers.read(&self.executor, &self.words);
        DenseInputs {
            logits: logits.address,
            row_stride: logits.stride as u64,
            rows,
            idle: rows.map(|rows| rows.offset(size_of_val(&self.plan.rows[..]) as u64)),
            sets: self.sets.view(&self.executor, buffers),
        }
    }
}

impl<V> DeviceLogits<V> {
    fn located(&self, address: Option<DevicePtr>) -> Located {
        Located {
            address,
            stride: self.stride,
            width: self.width,
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

pub(super) fn upload(device: &CudaDevice, values: &[u32]) -> Result<CudaSlice<u32>> {
    // A device has no buffer without elements.
    let values = if values.is_empty() { &[0] } else { values };
    Ok(device.clone_htod(values)?)
}
