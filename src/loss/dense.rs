//! The loss over logits as a candle custom op.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, InplaceOp2, Layout, Shape, Tensor};

use super::output::loss_dtype;
use super::pass::{Forward, Passed, Upstream, loss_shape, loss_values, output, storage_of};
use super::tensor::{Scalar, check_device, check_positions, cpu, matrix, with_element};
use super::{LossOutput, TemperatureSource};
use crate::backend::batch::Batch;
use crate::backend::cpu::dense::{Gradient, Logits, backward, gather_statistics, softmax_rows};
use crate::{Error, Result, Statistics, Temperature};

const LOGITS: &str = "logits";
const GRADIENT: &str = "gradient";

pub(super) fn forward(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
) -> Result<(LossOutput, Option<Temperature>)> {
    check(logits, &batch)?;
    let op = Arc::new(DenseLoss {
        batch,
        source,
        passed: Passed::default(),
    });
    let applied = logits.apply_op1(SharedLoss(op.clone()));
    let loss = op.passed.unwrapped(applied)?;
    let forward = op.passed.forward()?;
    Ok((output(loss, &op.batch, forward)?, forward.stepped.clone()))
}

pub(super) fn statistics(logits: &Tensor, batch: Batch) -> Result<Statistics> {
    check(logits, &batch)?;
    with_element!(logits.dtype(), LOGITS, T => {
        let (storage, layout) = logits.storage_and_layout();
        let logits = view::<T>(cpu(LOGITS, &storage)?, layout)?;
        Ok(gather_statistics(logits, &batch, false)?.statistics)
    })
}

pub(super) fn value_and_gradient(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
) -> Result<(LossOutput, Tensor, Option<Temperature>)> {
    check(logits, &batch)?;
    with_element!(logits.dtype(), LOGITS, T => {
        let (storage, layout) = logits.storage_and_layout();
        let view = view::<T>(cpu(LOGITS, &storage)?, layout)?;
        let mut values = bytemuck::zeroed_vec(logits.elem_count());
        let gradient = Gradient { values: &mut values, zeroed: true };
        let forward = pass(view, &batch, &source, Some(gradient))?;
        let gradient = Tensor::from_vec(values, logits.shape(), logits.device())?;
        let output = detached_output(logits, &batch, &forward)?;
        Ok((output, gradient, forward.stepped))
    })
}

pub(super) fn value_and_gradient_into(
    logits: &Tensor,
    batch: Batch,
    source: TemperatureSource,
    gradient: &Tensor,
) -> Result<(LossOutput, Option<Temperature>)> {
    check(logits, &batch)?;
    check_gradient(gradient, logits)?;
    let op = GradientInto {
        batch: &batch,
        source: &source,
        passed: Passed::default(),
    };
    op.passed.unwrapped(gradient.inplace_op2(logits, &op))?;
    let forward = op.passed.forward()?;
    let output = detached_output(logits, &batch, forward)?;
    Ok((output, forward.stepped.clone()))
}

/// The custom op from logits `[.., V]` to the loss of one batch.
struct DenseLoss {
    batch: Batch,
    source: TemperatureSource,
    passed: Passed<Forward>,
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
        let dtype = storage.dtype();
        let forward = op.passed.keep(with_element!(dtype, LOGITS, T => {
            view::<T>(storage, layout).and_then(|view| pass(view, &op.batch, &op.source, None))
        }))?;
        let loss = loss_values(&op.batch, forward);
        Ok((
            storage_of(loss, dtype),
            loss_shape(&op.batch, layout.dims()),
        ))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        _loss: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let op = &*self.0;
        let forward = op.passed.forward()?;
        let upstream = Upstream::new(upstream)?;
        let gradient: Result<Tensor> = with_element!(logits.dtype(), LOGITS, T => {
            let (storage, layout) = logits.storage_and_layout();
            let mut values = bytemuck::zeroed_vec(logits.elem_count());
            backward(
                view::<T>(cpu(LOGITS, &storage)?, layout)?,
                &op.batch,
                &forward.softmaxes,
                forward.temperature,
                |row| upstream.factor(&op.batch, row, forward.temperature),
                Gradient { values: &mut values, zeroed: true },
            );
            Ok(Tensor::from_vec(values, logits.shape(), logits.device())?)
        });
        Ok(Some(gradient?))
    }
}

/// Loss and gradient in one pass, the gradient written over a tensor that the caller keeps.
struct GradientInto<'a> {
    batch: &'a Batch,
    source: &'a TemperatureSource,
    passed: Passed<Forward>,
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
        logits_layout: &Layout,
    ) -> candle_core::Result<()> {
        let range = gradient_layout.contiguous_offsets();
        let mut write = || {
            with_element!(logits.dtype(), LOGITS, T => {
                let view = view::<T>(logits, logits_layout)?;
                let values = (T::storage_as_mut_slice(gradient).zip(range))
                    .and_then(|(values, (start, end))| values.get_mut(start..end));
                let values = values.ok_or_else(|| not_contiguous(gradient_layout))?;
                pass(view, self.batch, self.source, Some(Gradient { values, zeroed: false }))
            })
        };
        self.passed.keep(write()).map(|_| ())
    }
}

/// The pass itself: statistics, temperature, softmax and, where asked for, the gradient.
fn pass<T: Scalar>(
    logits: Logits<T>,
    batch: &Batch,
    source: &TemperatureSource,
    gradient: Option<Gradient<T>>,
) -> Result<Forward> {
    let zeroing = gradient.as_ref().is_some_and(|gradient| !gradient.zeroed);
    let gathered = gather_statistics(logits, batch, zeroing)?;
    let statistics = gathered.statistics;
    let (temperature, stepped) = source.resolve(&statistics)?;
    Ok(Forward {
        softmaxes: softmax_rows(logits, batch, gathered, temperature, gradient),
        statistics,
        temperature,
        stepped,
    })
}

/// The output of a pass that autograd does not see.
fn detached_output(logits: &Tensor, batch: &Batch, forward: &Forward) -> Result<LossOutput> {
    let values = loss_values(batch, forward);
    let loss = Tensor::from_vec(values, loss_shape(batch, logits.dims()), logits.device())?;
    output(loss.to_dtype(loss_dtype(logits.dtype()))?, batch, forward)
}

/// Everything that the slices of the backend rely on, refused in words before any work.
fn check(logits: &Tensor, batch: &Batch) -> Result<()> {
    check_device(LOGITS, logits)?;
    check_positions(logits, batch.positions)?;
    let vocabulary = logits.dims().last().copied().unwrap_or(0);
    let token = batch.sets.max_token();
    if token as usize >= vocabulary {
        return Err(Error::TokenOutsideVocabulary { token, vocabulary });
    }
    Ok(())
}

fn check_gradient(gradient: &Tensor, logits: &Tensor) -> Result<()> {
    check_device(GRADIENT, gradient)?;
    let unsupported = |expected: String, actual: String| Error::Unsupported {
        what: GRADIENT,
        expected,
        actual,
    };
    let description =
        |tensor: &Tensor| format!("{:?} of shape {:?}", tensor.dtype(), tensor.dims());
    if gradient.dtype() != logits.dtype() || gradient.dims() != logits.dims() {
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

fn view<'a, T: Scalar>(storage: &'a CpuStorage, layout: &Layout) -> Result<Logits<'a, T>> {
    let matrix = matrix(LOGITS, T::cpu_storage_as_slice(storage)?, layout)?;
    Ok(Logits {
        values: matrix.values,
        stride: matrix.stride,
        vocabulary: matrix.width,
    })
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
