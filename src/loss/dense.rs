//! The loss over logits as a candle custom op.

mod cpu;
#[cfg_attr(not(feature = "cuda"), path = "dense/no_cuda.rs")]
pub(super) mod cuda;

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Device, InplaceOp1, InplaceOp2, Layout, Shape, Tensor,
};

use super::LossOutput;
use super::pass::{Forward, Passed, loss_shape, loss_values, output, storage_of};
use super::residence::Residence;
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
    residence: &Residence,
) -> Result<(LossOutput, Option<Stepped>)> {
    check(logits, &batch)?;
    let op = Arc::new(DenseLoss {
        batch,
        source,
        residence: residence.clone(),
        passed: Passed::default(),
    });
    let applied = logits.apply_op1(SharedLoss(op.clone()));
    let loss = op.passed.unwrapped(applied)?;
    let left = op.passed.forward()?;
    Ok((left.output(loss, &op.batch)?, left.stepped()))
}

pub(super) fn statistics(
    logits: &Tensor,
    batch: Batch,
    residence: &Residence,
) -> Result<Statistics> {
    check(logits, &batch)?;
    match logits.device() {
        Device::Cuda(_) => cuda::statistics(logits, &batch, residence),
        _ => cpu::statistics(logits, &batch),
    }
}

pub(super) fn value_and_gradient(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
    residence: &Residence,
) -> Result<(LossOutput, Tensor, Option<Stepped>)> {
    check(logits, &batch)?;
    match logits.device() {
        Device::Cuda(_) => cuda::value_and_gradient(logits, &batch, &source, residence),
        _ => {
            let (forward, gradient) = cpu::value_and_gradient(logits, &batch, &source)?;
            let output = cpu::detached_output(logits.dims(), logits.dtype(), &batch, &forward)?;
            Ok((output, gradient, forward.stepped.map(Stepped::OnHost)))
        }
    }
}

pub(super) fn value_and_gradient_into(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
    residence: &Residence,
    gradient: &Tensor,
) -> Result<(LossOutput, Option<Stepped>)> {
    check(logits, &batch)?;
    check_gradient(gradient, logits)?;
    if logits.elem_count() == 0 {
        return value_of_nothing(logits, batch, source, residence);
    }
    let op = GradientInto {
        batch: &batch,
        source: &source,
        residence,
        passed: Passed::default(),
    };
    op.passed.unwrapped(gradient.inplace_op2(logits, &op))?;
    op.passed.forward().cloned()
}

pub(super) fn value_and_gradient_over(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
    residence: &Residence,
) -> Result<(LossOutput, Option<Stepped>)> {
    check(logits, &batch)?;
    check_rows_apart(logits)?;
    if logits.elem_count() == 0 {
        return value_of_nothing(logits, batch, source, residence);
    }
    let op = GradientInto {
        batch: &batch,
        source: &source,
        residence,
        passed: Passed::default(),
    };
    op.passed.unwrapped(logits.inplace_op1(&op))?;
    op.passed.forward().cloned()
}

/// The loss of logits without an element, whose gradient there is nothing to write over: candle sees strides of 0 in
/// some of their shapes, and refuses to write where elements might lie on one another.
fn value_of_nothing(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
    residence: &Residence,
) -> Result<(LossOutput, Option<Stepped>)> {
    let (output, _, stepped) = value_and_gradient(logits, batch, source, residence)?;
    Ok((output, stepped))
}

/// What a forward pass left, for the caller and for the backward pass.
enum Left {
    OnCpu(Forward),
    OnCuda(Box<cuda::Left>),
}

impl Left {
    fn output(&self, loss: Tensor, batch: &Batch) -> Result<LossOutput> {
        match self {
            Self::OnCpu(forward) => output(loss, batch, forward),
            Self::OnCuda(left) => left.output(loss, batch),
        }
    }

    fn stepped(&self) -> Option<Stepped> {
        match self {
            Self::OnCpu(forward) => forward.stepped.clone().map(Stepped::OnHost),
            Self::OnCuda(left) => left.stepped(),
        }
    }
}

/// The custom op from logits `[.., V]` to the loss of one batch.
struct DenseLoss {
    batch: Batch,
    source: TemperatureSource,
    residence: Residence,
    passed: Passed<Left>,
}

/// The op as candle's graph holds it, while [`forward`] reads what it left.
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
        let op = &*self.0;
        let forward = cpu::forward(storage, layout, &op.batch, &op.source);
        let forward = op.passed.noted(forward)?;
        let loss = loss_values(&op.batch, &forward);
        op.passed.keep(Ok(Left::OnCpu(forward)))?;
        let shape = loss_shape(&op.batch, layout.dims());
        Ok((storage_of(loss, storage.dtype()), shape))
    }

    fn cuda_fwd(
        &self,
        storage: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let op = &*self.0;
        let forward = cuda::forward(storage, layout, &op.batch, &op.source, &op.residence);
        let (left, loss) = op.passed.noted(forward)?;
        op.passed.keep(Ok(Left::OnCuda(Box::new(left))))?;
        Ok((loss, loss_shape(&op.batch, layout.dims())))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        _loss: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let op = &*self.0;
        let gradient = match op.passed.forward()? {
            Left::OnCpu(forward) => cpu::backward(logits, &op.batch, forward, upstream),
            Left::OnCuda(left) => cuda::backward(logits, left, upstream),
        };
        Ok(Some(gradient?))
    }
}

/// Loss and gradient in one pass, the gradient written over a tensor that the caller keeps, or over
/// the logits.
struct GradientInto<'a> {
    batch: &'a Batch,
    source: &'a TemperatureSource,
    residence: &'a Residence,
    passed: Passed<(LossOutput, Option<Stepped>)>,
}

impl InplaceOp2 for GradientInto<'_> {
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
        let (batch, dtype) = (self.batch, logits.dtype());
        let logits = (logits, layout);
        let forward = cpu::forward_into(gradient, gradient_layout, logits, batch, self.source);
        let left = forward.and_then(|forward| {
            let output = cpu::detached_output(layout.dims(), dtype, batch, &forward)?;
            Ok((output, forward.stepped.map(Stepped::OnHost)))
        });
        self.passed.keep(left).map(|_| ())
    }

    fn cuda_fwd(
        &self,
        gradient: &mut CudaStorage,
        gradient_layout: &Layout,
        logits: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<()> {
        let gradient = (gradient, gradient_layout);
        let left = cuda::forward_into(
            gradient,
            (logits, layout),
            self.batch,
            self.source,
            self.residence,
        );
        self.passed.keep(left).map(|_| ())
    }
}

impl InplaceOp1 for GradientInto<'_> {
    fn name(&self) -> &'static str {
        "masked-softmax-loss-gradient-over-logits"
    }

    fn cpu_fwd(&self, logits: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (batch, dtype) = (self.batch, logits.dtype());
        let forward = cpu::forward_over(logits, layout, batch, self.source);
        let left = forward.and_then(|forward| {
            let output = cpu::detached_output(layout.dims(), dtype, batch, &forward)?;
            Ok((output, forward.stepped.map(Stepped::OnHost)))
        });
        self.passed.keep(left).map(|_| ())
    }

    fn cuda_fwd(&self, logits: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let left = cuda::forward_over(logits, layout, self.batch, self.source, self.residence);
        self.passed.keep(left).map(|_| ())
    }
}

/// Everything that the backends rely on, refused in words before any work.
fn check(logits: &Tensor, batch: &Batch) -> Result<()> {
    check_loss_device(LOGITS, logits)?;
    check_positions(logits, batch.positions)?;
    let vocabulary = logits.dims().last().copied().unwrap_or(0);
    let token = batch.sets.max_token();
    if token as usize >= vocabulary {
        return Err(Error::TokenOutsideVocabulary { token, vocabulary });
    }
    if logits.device().is_cpu() {
        return Ok(());
    }
    if batch.checked {
        // To name the first logit that is not finite is worth a copy to those who ask for it.
        cpu::statistics(&logits.to_device(&Device::Cpu)?, batch)?;
    }
    Ok(())
}

/// Refuses to write over logits whose rows share memory.
fn check_rows_apart(logits: &Tensor) -> Result<()> {
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
    // candle would wait for itself: it locks the one for writing while it reads the other.
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
