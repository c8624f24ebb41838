//! The loss over logits as a candle custom op.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(super) mod cuda;

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Device, InplaceOp1, InplaceOp2, Layout, Shape, Tensor};

use super::LossOutput;
use super::call::{CpuForward, LossCall, Saved, loss_shape, loss_values, output, storage_of};
use super::device_sets::DeviceSetCache;
use super::temperature::{Stepped, TemperatureSource};
use super::tensor::{check_loss_device, check_positions, matrix_shape};
use crate::backend::batch::Batch;
use crate::{Error, Result, Statistics};

const LOGITS: &str = "logits";
const GRADIENT: &str = "gradient";

pub(super) fn forward(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
    device_sets: &DeviceSetCache,
) -> Result<(LossOutput, Option<Stepped>)> {
    check(logits, &batch)?;
    let op = Arc::new(DenseLoss {
        call: LossCall::new(batch, source, device_sets),
        saved: Saved::default(),
    });
    let loss = (op.saved).unwrapped(logits.apply_op1(SharedLoss(op.clone())))?;
    op.saved.forward()?.output(loss, &op.call.batch)
}

pub(super) fn statistics(
    logits: &Tensor,
    batch: Batch,
    device_sets: &DeviceSetCache,
) -> Result<Statistics> {
    check(logits, &batch)?;
    match logits.device() {
        Device::Cpu => cpu::statistics(logits, &batch),
        _ => {
            let at_any = TemperatureSource::Given(1.0);
            let (output, _) = forward(&logits.detach(), batch, at_any, device_sets)?;
            output.read_statistics()
        }
    }
}

pub(super) fn value_and_gradient(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
    device_sets: &DeviceSetCache,
) -> Result<(LossOutput, Tensor, Option<Stepped>)> {
    check(logits, &batch)?;
    let call = LossCall::new(batch, source, device_sets);
    let (output, stepped, gradient) = match logits.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::value_and_gradient(logits, &call)?,
        _ => cpu::value_and_gradient(logits, &call)?,
    };
    Ok((output, gradient, stepped))
}

pub(super) fn value_and_gradient_into(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
    device_sets: &DeviceSetCache,
    gradient: &Tensor,
) -> Result<(LossOutput, Option<Stepped>)> {
    check(logits, &batch)?;
    check_gradient(gradient, logits)?;
    if logits.elem_count() == 0 {
        return value_of_nothing(logits, batch, source, device_sets);
    }
    let op = GradientInto::new(batch, source, device_sets);
    op.saved.unwrapped(gradient.inplace_op2(logits, &op))?;
    op.saved.forward().cloned()
}

pub(super) fn value_and_gradient_over(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
    device_sets: &DeviceSetCache,
) -> Result<(LossOutput, Option<Stepped>)> {
    check(logits, &batch)?;
    check_rows_do_not_overlap(logits)?;
    if logits.elem_count() == 0 {
        return value_of_nothing(logits, batch, source, device_sets);
    }
    let op = GradientInto::new(batch, source, device_sets);
    op.saved.unwrapped(logits.inplace_op1(&op))?;
    op.saved.forward().cloned()
}

/// Returns the loss of logits without an element, for which no gradient is written: candle sees strides of 0 in some of
/// their shapes, and refuses to write where elements might overlap.
fn value_of_nothing(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
    device_sets: &DeviceSetCache,
) -> Result<(LossOutput, Option<Stepped>)> {
    let (output, _, stepped) = value_and_gradient(logits, batch, source, device_sets)?;
    Ok((output, stepped))
}

/// What a forward pass saves for the backward pass.
enum SavedForward {
    OnCpu(CpuForward),
    #[cfg(feature = "cuda")]
    OnCuda(Box<cuda::SavedForward>),
}

impl SavedForward {
    fn output(&self, loss: Tensor, batch: &Batch) -> Result<(LossOutput, Option<Stepped>)> {
        match self {
            Self::OnCpu(forward) => output(loss, batch, forward),
            #[cfg(feature = "cuda")]
            Self::OnCuda(forward) => forward.output(loss, batch),
        }
    }
}

/// The custom op from logits `[.., V]` to the loss of one batch.
struct DenseLoss {
    call: LossCall,
    saved: Saved<SavedForward>,
}

/// The op in candle's graph, which shares ownership with [`forward`], so that that can read what it saved.
struct SharedLoss(Arc<DenseLoss>);

impl CustomOp1 for SharedLoss {
    fn name(&self) -> &'static str {
        "masked-softmax-loss"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let call = &self.0.call;
        let forward = cpu::forward(storage, layout, call).map(|forward| {
            let loss = storage_of(loss_values(&call.batch, &forward), storage.dtype());
            (SavedForward::OnCpu(forward), loss)
        });
        let loss = self.0.saved.save(forward)?;
        Ok((loss, loss_shape(&call.batch, layout.dims())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let call = &self.0.call;
        let forward = cuda::forward((storage, layout), call);
        let forward = forward.map(|(forward, loss)| (SavedForward::OnCuda(forward.into()), loss));
        let loss = self.0.saved.save(forward)?;
        Ok((loss, loss_shape(&call.batch, layout.dims())))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        _loss: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let op = &*self.0;
        let gradient = match op.saved.forward()? {
            SavedForward::OnCpu(forward) => {
                cpu::backward(logits, &op.call.batch, forward, upstream)
            }
            #[cfg(feature = "cuda")]
            SavedForward::OnCuda(forward) => cuda::backward(logits, forward, upstream),
        };
        Ok(Some(gradient?))
    }
}

/// The op that computes loss and gradient in one pass. The gradient overwrites a tensor of the caller ([`InplaceOp2`]) or the logits
/// ([`InplaceOp1`]).
struct GradientInto {
    call: LossCall,
    saved: Saved<(LossOutput, Option<Stepped>)>,
}

impl GradientInto {
    fn new(batch: Batch, source: TemperatureSource, device_sets: &DeviceSetCache) -> Self {
        Self {
            call: LossCall::new(batch, source, device_sets),
            saved: Saved::default(),
        }
    }

    fn save(&self, result: Result<(LossOutput, Option<Stepped>)>) -> candle_core::Result<()> {
        self.saved.save(result.map(|output| (output, ())))
    }
}

impl InplaceOp2 for GradientInto {
    fn name(&self) -> &'static str {
        "masked-softmax-loss-gradient"
    }

    fn cpu_fwd(
        &self,
        gradient: &mut CpuStorage,
        gradient_layout: &Layout,
        logits: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<()> {
        let gradient = (gradient, gradient_layout);
        self.save(cpu::forward_into(gradient, (logits, layout), &self.call))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        gradient: &mut CudaStorage,
        gradient_layout: &Layout,
        logits: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<()> {
        let gradient = (gradient, gradient_layout);
        self.save(cuda::forward_into(gradient, (logits, layout), &self.call))
    }
}

impl InplaceOp1 for GradientInto {
    fn name(&self) -> &'static str {
        "masked-softmax-loss-gradient-over-logits"
    }

    fn cpu_fwd(&self, logits: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        self.save(cpu::forward_over(logits, layout, &self.call))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, logits: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        self.save(cuda::forward_over(logits, layout, &self.call))
    }
}

/// Refuses logits that do not fit the batch, before any work. The backends rely on all these checks.
fn check(logits: &Tensor, batch: &Batch) -> Result<()> {
    check_loss_device(LOGITS, logits)?;
    check_positions(logits, batch.positions)?;
    let vocabulary = logits.dims().last().copied().unwrap_or(0);
    let token = batch.sets.max_token();
    if token as usize >= vocabulary {
        return Err(Error::TokenOutsideVocabulary { token, vocabulary });
    }
    if batch.checked && !logits.device().is_cpu() {
        // The user has asked for the check, which needs a copy on the host to name the first logit that is not finite.
        cpu::statistics(&logits.to_device(&Device::Cpu)?, batch)?;
    }
    Ok(())
}

/// Refuses to overwrite logits whose rows share memory.
fn check_rows_do_not_overlap(logits: &Tensor) -> Result<()> {
    let layout = logits.layout();
    let (stride, width) = matrix_shape(LOGITS, layout)?;
    if stride >= width || logits.elem_count() <= width {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: LOGITS,
        expected: "rows that do not share memory".into(),
        actual: format!("rows of {width} elements, {stride} apart"),
    })
}

fn check_gradient(gradient: &Tensor, logits: &Tensor) -> Result<()> {
    check_loss_device(GRADIENT, gradient)?;
    let unsupported = |expected: String, actual: String| Error::Unsupported {
        what: GRADIENT,
        expected,
        actual,
    };
    let description = |tensor: &Tensor| {
        format!(
            "{:?} of shape {:?} on {:?}",
            tensor.dtype(),
            tensor.dims(),
            tensor.device().location()
        )
    };
    if gradient.dtype() != logits.dtype()
        || gradient.dims() != logits.dims()
        || !gradient.device().same_device(logits.device())
    {
        return Err(unsupported(description(logits), description(gradient)));
    }
    let (gradient_storage, layout) = gradient.storage_and_layout();
    if !layout.is_contiguous() {
        return Err(not_contiguous(layout));
    }
    // candle would deadlock: it locks the gradient for writing while it holds a lock to read the logits.
    if std::ptr::eq(&*gradient_storage, &*logits.storage_and_layout().0) {
        return Err(unsupported(
            "memory of its own".into(),
            "the memory of the logits".into(),
        ));
    }
    Ok(())
}

fn not_contiguous(layout: &Layout) -> Error {
    Error::Unsupported {
        what: GRADIENT,
        expected: "a contiguous tensor".into(),
        actual: format!(
            "shape {:?} with strides {:?}",
            layout.dims(),
            layout.stride()
        ),
    }
}
