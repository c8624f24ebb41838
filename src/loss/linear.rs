//! The loss over hidden states × head as a candle custom op.

#[cfg_attr(not(feature = "cuda"), path = "linear/no_cuda.rs")]
mod cuda;
mod inputs;

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Device, Layout, Shape, Tensor};

use inputs::{bias_or_none, check, head_view, hidden_view, viewed};

use super::LossOutput;
use super::head::{BIAS, Gathered, HEAD, Head};
use super::pass::{Forward, Passed, Upstream, loss_shape, loss_values, output, storage_of};
use super::residence::Residence;
use super::temperature::{Stepped, TemperatureSource};
use super::tensor::{Scalar, cpu, with_element};
use crate::backend::batch::Batch;
use crate::backend::cpu::linear::{
    self, HeadGradient, Hidden, Softened, Wanted, WholeVocabulary, head_gradient, hidden_gradient,
    score, soften, whole_vocabulary_head_gradient,
};
use crate::{Result, Statistics};

const HIDDEN: &str = "hidden states";

pub(super) fn forward(
    hidden: &Tensor,
    head: Head,
    batch: Batch,
    source: TemperatureSource,
    residence: &Residence,
) -> Result<(LossOutput, Option<Stepped>)> {
    check_inputs(hidden, &head, &batch)?;
    with_element!(hidden.dtype(), HIDDEN, T => {
        forward_of::<T>(hidden, head, batch, source, residence)
    })
}

pub(super) fn statistics(
    hidden: &Tensor,
    head: Head,
    batch: Batch,
    residence: &Residence,
) -> Result<Statistics> {
    check_inputs(hidden, &head, &batch)?;
    if !hidden.device().is_cpu() {
        let (weight, bias) = (head.weight.detach(), head.bias.map(Tensor::detach));
        let head = head.with(&weight, bias.as_ref());
        let at_any = TemperatureSource::Given(1.0);
        let (output, _) = forward(&hidden.detach(), head, batch, at_any, residence)?;
        return output.read_statistics();
    }
    statistics_on_cpu(hidden, &head, &batch)
}

fn statistics_on_cpu(hidden: &Tensor, head: &Head, batch: &Batch) -> Result<Statistics> {
    with_element!(hidden.dtype(), HIDDEN, T => {
        viewed::<T, _>(hidden, head, |hidden, head| {
            match WholeVocabulary::new(hidden, head, batch) {
                Some(rows) => rows.statistics(),
                None => Ok(score(hidden, head, batch)?.statistics),
            }
        })
    })
}

/// The logits of every row's tokens, for sets that are listed.
pub(super) fn valid_logits(hidden: &Tensor, head: &Head, batch: &Batch) -> Result<Vec<Vec<f64>>> {
    check_inputs(hidden, head, batch)?;
    with_element!(hidden.dtype(), HIDDEN, T => {
        viewed::<T, _>(hidden, head, |hidden, head| {
            Ok(score(hidden, head, batch)?.in_batch_order())
        })
    })
}

pub(super) fn value_and_gradient(
    hidden: &Tensor,
    head: Head,
    batch: Batch,
    source: TemperatureSource,
    residence: &Residence,
) -> Result<(LossOutput, Tensor, Option<Stepped>)> {
    check_inputs(hidden, &head, &batch)?;
    let hidden = &hidden.detach();
    with_element!(hidden.dtype(), HIDDEN, T => {
        let wanted = Wanted { hidden: true, head: false };
        let applied = Applied::<T>::new(hidden, head, batch, source, residence, wanted, true)?;
        let gradient = match applied.op.passed.forward()? {
            Left::OnCpu(passed) => {
                let upstream = Upstream::ones(&applied.op.batch);
                let [gradient, ..] = applied.op.gradients(passed, applied.tensors(hidden), &upstream)?;
                gradient
            }
            Left::OnCuda(left) => left.gradient(),
        };
        let (output, stepped) = applied.output()?;
        // A pass with gradient has one.
        let gradient = gradient.map_or_else(|| hidden.zeros_like(), Ok)?;
        Ok((output, gradient, stepped))
    })
}

fn forward_of<T: Scalar>(
    hidden: &Tensor,
    head: Head,
    batch: Batch,
    source: TemperatureSource,
    residence: &Residence,
) -> Result<(LossOutput, Option<Stepped>)> {
    let tracked = |tensor: &Tensor| tensor.track_op();
    let wanted = Wanted {
        hidden: tracked(hidden),
        head: tracked(head.weight) || head.bias.is_some_and(tracked),
    };
    Applied::<T>::new(hidden, head, batch, source, residence, wanted, false)?.output()
}

/// The op, applied to its tensors.
struct Applied<T: Scalar> {
    op: Arc<LinearLoss<T>>,
    weight: Tensor,
    bias: Tensor,
    loss: Tensor,
}

impl<T: Scalar> Applied<T> {
    fn new(
        hidden: &Tensor,
        head: Head,
        batch: Batch,
        source: TemperatureSource,
        residence: &Residence,
        wanted: Wanted,
        direct: bool,
    ) -> Result<Self> {
        let bias = bias_or_none(&head)?;
        let weight = head.weight.clone();
        let op = Arc::new(LinearLoss::<T> {
            batch,
            source,
            residence: residence.clone(),
            has_bias: head.bias.is_some(),
            gathered: head.gathered.cloned(),
            wanted,
            direct,
            passed: Passed::default(),
        });
        let applied = hidden.apply_op3(&weight, &bias, SharedLoss(op.clone()));
        let loss = op.passed.unwrapped(applied)?;
        Ok(Self {
            op,
            weight,
            bias,
            loss,
        })
    }

    fn tensors<'a>(&'a self, hidden: &'a Tensor) -> [&'a Tensor; 3] {
        [hidden, &self.weight, &self.bias]
    }

    fn output(self) -> Result<(LossOutput, Option<Stepped>)> {
        let (op, loss) = (&self.op, self.loss);
        Ok(match op.passed.forward()? {
            Left::OnCpu(passed) => {
                let (forward, _) = &**passed;
                let stepped = forward.stepped.clone().map(Stepped::OnHost);
                (output(loss, &op.batch, forward)?, stepped)
            }
            Left::OnCuda(left) => (left.output(loss, &op.batch)?, left.stepped()),
        })
    }
}

/// Refuses what a pass cannot take, before any work.
fn check_inputs(hidden: &Tensor, head: &Head, batch: &Batch) -> Result<()> {
    check(hidden, head, batch)?;
    match hidden.device() {
        Device::Cpu => Ok(()),
        _ => check_on_cpu(hidden, head, batch),
    }
}

/// In checked mode, looks at the logits on the CPU: to name the first that is not finite is worth a copy
/// to those who ask for it.
fn check_on_cpu(hidden: &Tensor, head: &Head, batch: &Batch) -> Result<()> {
    if !batch.checked {
        return Ok(());
    }
    let to_cpu = |tensor: &Tensor| tensor.to_device(&Device::Cpu);
    let (weight, bias) = (to_cpu(head.weight)?, head.bias.map(to_cpu).transpose()?);
    let copied = Head {
        weight: &weight,
        bias: bias.as_ref(),
        gathered: None,
        gathered_sets: None,
    };
    statistics_on_cpu(&to_cpu(hidden)?, &copied, batch).map(|_| ())
}

/// The custom op from hidden states `[.., H]`, head `[V, H]` and bias to the loss of one batch.
struct LinearLoss<T: Scalar> {
    batch: Batch,
    source: TemperatureSource,
    residence: Residence,
    has_bias: bool,
    gathered: Option<Arc<Gathered>>,
    wanted: Wanted,
    /// Whether a device makes the gradient of the hidden states in the forward pass.
    direct: bool,
    passed: Passed<Left<T>>,
}

/// What a pass is made with besides its tensors, on a device.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
struct Pass<'a> {
    batch: &'a Batch,
    source: &'a TemperatureSource,
    residence: &'a Residence,
    wanted: Wanted,
    direct: bool,
}

/// What a forward pass left, for the caller and for the backward pass.
enum Left<T: Scalar> {
    OnCpu(Box<(Forward, Softened<T::Real>)>),
    OnCuda(Box<cuda::Left>),
}

/// The op as candle's graph holds it, while [`forward_of`] reads what it left.
struct SharedLoss<T: Scalar>(Arc<LinearLoss<T>>);

impl<T: Scalar> LinearLoss<T> {
    fn pass(
        &self,
        hidden: Hidden<T>,
        head: &linear::Head<T>,
    ) -> Result<(Forward, Softened<T::Real>)> {
        let (batch, wanted) = (&self.batch, self.wanted);
        let (statistics, temperature, softened);
        match WholeVocabulary::new(hidden, head, batch) {
            Some(rows) => {
                statistics = rows.statistics()?;
                temperature = self.source.resolve(&statistics)?;
                softened = rows.soften(temperature.0, wanted);
            }
            None => {
                let scores = score(hidden, head, batch)?;
                statistics = scores.statistics;
                temperature = self.source.resolve(&statistics)?;
                softened = soften(scores, batch, temperature.0, wanted);
            }
        }
        let (softmaxes, softened) = softened;
        let forward = Forward::new(batch, softmaxes, statistics, temperature);
        Ok((forward, softened))
    }

    /// The gradients of hidden states, head and bias, where each is wanted.
    fn gradients(
        &self,
        passed: &(Forward, Softened<T::Real>),
        [hidden, head, bias]: [&Tensor; 3],
        upstream: &Upstream,
    ) -> Result<[Option<Tensor>; 3]> {
        let (batch, wanted, (forward, softened)) = (&self.batch, self.wanted, passed);
        let factor = |index| upstream.factor(batch, forward, index);
        let gathered = self.gathered.as_ref();
        let storages = [hidden, head, bias].map(Tensor::storage_and_layout);
        let [of_hidden, of_head, of_bias] = &storages;
        let hidden_view = hidden_view::<T>(cpu(HIDDEN, &of_hidden.0)?, of_hidden.1)?;
        let (head_cpu, bias_cpu) = (cpu(HEAD, &of_head.0)?, cpu(BIAS, &of_bias.0)?);
        let head_view = head_view::<T>(head_cpu, of_head.1, bias_cpu, of_bias.1, gathered)?;
        let like = |tensor: &Tensor, values: Vec<T>| {
            Tensor::from_vec(values, tensor.shape(), &Device::Cpu)
        };

        let mut gradients = [None, None, None];
        if wanted.hidden {
            softened.check_frozen(&head_view, batch)?;
            let length = hidden.elem_count();
            let values = hidden_gradient(softened, &head_view, batch, factor, length);
            gradients[0] = Some(like(hidden, values)?);
        }
        if wanted.head {
            let lengths = [head, bias].map(Tensor::elem_count);
            let values = self.head_gradients(passed, hidden_view, &head_view, factor, lengths);
            for ((gradient, tensor), values) in
                gradients[1..].iter_mut().zip([head, bias]).zip(values)
            {
                if tensor.track_op() {
                    *gradient = Some(like(tensor, values)?);
                }
            }
        }
        Ok(gradients)
    }

    /// The gradients of the head and its bias.
    fn head_gradients(
        &self,
        (forward, softened): &(Forward, Softened<T::Real>),
        hidden: Hidden<T>,
        head: &linear::Head<T>,
        factor: impl Fn(usize) -> f64 + Sync,
        lengths: [usize; 2],
    ) -> [Vec<T>; 2] {
        let [mut of_head, mut of_bias] = lengths.map(bytemuck::zeroed_vec);
        let gradient = HeadGradient {
            head: &mut of_head,
            bias: &mut of_bias,
            width: head.width,
        };
        let batch = &self.batch;
        match softened {
            Softened::Errors(errors) => head_gradient(errors, hidden, batch, factor, gradient),
            Softened::Unscaled(_) => whole_vocabulary_head_gradient(
                &forward.softmaxes,
                hidden,
                head,
                batch,
                forward.temperature,
                factor,
                gradient,
            ),
        }
        [of_head, of_bias]
    }
}

impl<T: Scalar> CustomOp3 for SharedLoss<T> {
    fn name(&self) -> &'static str {
        "masked-softmax-loss-linear"
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        head: &CpuStorage,
        head_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let op = &*self.0;
        let gathered = op.gathered.as_ref();
        let pass = head_view::<T>(head, head_layout, bias, bias_layout, gathered)
            .and_then(|head| op.pass(hidden_view(hidden, hidden_layout)?, &head));
        let passed = op.passed.noted(pass)?;
        let loss = loss_values(&op.batch, &passed.0);
        op.passed.keep(Ok(Left::OnCpu(Box::new(passed))))?;
        let shape = loss_shape(&op.batch, hidden_layout.dims());
        Ok((storage_of(loss, hidden.dtype()), shape))
    }

    fn cuda_fwd(
        &self,
        hidden: &CudaStorage,
        hidden_layout: &Layout,
        head: &CudaStorage,
        head_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let op = &*self.0;
        let pass = Pass {
            batch: &op.batch,
            source: &op.source,
            residence: &op.residence,
            wanted: op.wanted,
            direct: op.direct,
        };
        let bias = op.has_bias.then_some((bias, bias_layout));
        let passed = cuda::forward((hidden, hidden_layout), (head, head_layout), bias, &pass);
        let (left, loss) = op.passed.noted(passed)?;
        op.passed.keep(Ok(Left::OnCuda(Box::new(left))))?;
        Ok((loss, loss_shape(&op.batch, hidden_layout.dims())))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        bias: &Tensor,
        _loss: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let op = &*self.0;
        let tensors = [hidden, head, bias];
        let [of_hidden, of_head, of_bias] = match op.passed.forward()? {
            Left::OnCpu(passed) => op.gradients(passed, tensors, &Upstream::new(upstream)?)?,
            Left::OnCuda(left) => cuda::backward(tensors, op.has_bias, op.wanted, left, upstream)?,
        };
        Ok((of_hidden, of_head, of_bias))
    }
}
