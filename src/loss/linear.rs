//! The loss over hidden states × head as a candle custom op.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod inputs;

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Device, Layout, Shape, Tensor};

pub(crate) use inputs::check_fit;
use inputs::{CheckedInputs, FrozenRows, head_view, hidden_view};

use super::LossOutput;
use super::call::{
    CpuForward, LossCall, Saved, Upstream, loss_shape, loss_values, output, storage_of,
};
use super::device_sets::DeviceSetCache;
use super::head::{BIAS, HEAD, Head};
use super::temperature::{Stepped, TemperatureSource};
use super::tensor::{Scalar, cpu as host, with_element};
use crate::backend::batch::Batch;
use crate::backend::cpu::linear::{HeadGradient, Wanted, WholeVocabulary, score};
use crate::{Result, Statistics};

const HIDDEN: &str = "hidden states";

pub(super) fn forward(
    hidden: &Tensor,
    head: Head,
    batch: Batch,
    source: TemperatureSource,
    device_sets: &DeviceSetCache,
) -> Result<(LossOutput, Option<Stepped>)> {
    let inputs = CheckedInputs::new(hidden, &head, &batch)?;
    forward_of_checked(inputs, LossCall::new(batch, source, device_sets))
}

pub(super) fn statistics(
    hidden: &Tensor,
    head: Head,
    batch: Batch,
    device_sets: &DeviceSetCache,
) -> Result<Statistics> {
    let inputs = CheckedInputs::new(hidden, &head, &batch)?;
    if hidden.device().is_cpu() {
        return statistics_on_cpu(&inputs, &batch);
    }
    let at_any = TemperatureSource::Given(1.0);
    let call = LossCall::new(batch, at_any, device_sets);
    forward_of_checked(inputs.detached()?, call)?
        .0
        .read_statistics()
}

/// Returns the logits of every row's tokens, for sets that are listed.
pub(super) fn valid_logits(hidden: &Tensor, head: &Head, batch: &Batch) -> Result<Vec<Vec<f64>>> {
    let inputs = CheckedInputs::new(hidden, head, batch)?;
    with_element!(hidden.dtype(), HIDDEN, T => {
        inputs.viewed::<T, _>(|hidden, head| Ok(score(hidden, head, batch)?.in_batch_order()))
    })
}

pub(super) fn value_and_gradient(
    hidden: &Tensor,
    head: Head,
    batch: Batch,
    source: TemperatureSource,
    device_sets: &DeviceSetCache,
) -> Result<(LossOutput, Tensor, Option<Stepped>)> {
    let inputs = CheckedInputs::new(hidden, &head, &batch)?.detached()?;
    let call = LossCall::new(batch, source, device_sets);
    with_element!(hidden.dtype(), HIDDEN, T => {
        let wanted = Wanted { hidden: true, head: false };
        let applied = Applied::<T>::new(inputs, call, wanted, true)?;
        let gradient = applied.hidden_gradient()?;
        let (output, stepped) = applied.output()?;
        // A pass that computes the gradient itself always has one.
        let gradient = gradient.map_or_else(|| hidden.zeros_like(), Ok)?;
        Ok((output, gradient, stepped))
    })
}

fn forward_of_checked(
    inputs: CheckedInputs,
    call: LossCall,
) -> Result<(LossOutput, Option<Stepped>)> {
    let wanted = Wanted {
        hidden: inputs.hidden.track_op(),
        head: inputs.weight.track_op() || inputs.bias.track_op(),
    };
    with_element!(inputs.hidden.dtype(), HIDDEN, T => {
        Applied::<T>::new(inputs, call, wanted, false)?.output()
    })
}

fn statistics_on_cpu(inputs: &CheckedInputs, batch: &Batch) -> Result<Statistics> {
    with_element!(inputs.hidden.dtype(), HIDDEN, T => {
        inputs.viewed::<T, _>(|hidden, head| match WholeVocabulary::new(hidden, head, batch) {
            Some(rows) => rows.statistics(),
            None => Ok(score(hidden, head, batch)?.statistics),
        })
    })
}

/// The op, applied to its tensors.
struct Applied<T: Scalar> {
    op: Arc<LinearLoss<T>>,
    inputs: CheckedInputs,
    loss: Tensor,
}

impl<T: Scalar> Applied<T> {
    fn new(inputs: CheckedInputs, call: LossCall, wanted: Wanted, direct: bool) -> Result<Self> {
        let op = Arc::new(LinearLoss::<T> {
            call,
            has_bias: inputs.has_bias,
            frozen: inputs.frozen.clone(),
            wanted,
            direct,
            saved: Saved::default(),
        });
        let (hidden, shared) = (&inputs.hidden, SharedLoss(op.clone()));
        let applied = hidden.apply_op3(&inputs.weight, &inputs.bias, shared);
        let loss = op.saved.unwrapped(applied)?;
        Ok(Self { op, inputs, loss })
    }

    /// Returns the gradient of the hidden states for an upstream gradient of 1; `None` if the pass did not prepare it.
    fn hidden_gradient(&self) -> Result<Option<Tensor>> {
        let CheckedInputs {
            hidden,
            weight,
            bias,
            ..
        } = &self.inputs;
        match self.op.saved.forward()? {
            SavedForward::OnCpu(saved) => {
                let upstream = Upstream::ones(&self.op.call.batch);
                let [gradient, ..] =
                    (self.op).gradients(saved, [hidden, weight, bias], &upstream)?;
                Ok(gradient)
            }
            #[cfg(feature = "cuda")]
            SavedForward::OnCuda(forward) => Ok(forward.gradient.clone()),
        }
    }

    fn output(self) -> Result<(LossOutput, Option<Stepped>)> {
        let batch = &self.op.call.batch;
        match self.op.saved.forward()? {
            SavedForward::OnCpu(saved) => output(self.loss, batch, &saved.forward),
            #[cfg(feature = "cuda")]
            SavedForward::OnCuda(forward) => forward.output(self.loss, batch),
        }
    }
}

/// The custom op from hidden states `[.., H]`, head `[V, H]` and bias to the loss of one batch. Of a head in two parts, its input is
/// the added rows `[V′, H]`.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
struct LinearLoss<T: Scalar> {
    call: LossCall,
    has_bias: bool,
    frozen: FrozenRows,
    /// The gradients that the backward pass will compute.
    wanted: Wanted,
    /// Whether the forward pass on a device computes the gradient of the hidden states.
    direct: bool,
    saved: Saved<SavedForward<T>>,
}

/// What a forward pass saves for the backward pass.
enum SavedForward<T: Scalar> {
    OnCpu(Box<cpu::SavedForward<T>>),
    #[cfg(feature = "cuda")]
    OnCuda(Box<cuda::SavedForward>),
}

/// The op in candle's graph, which shares ownership with [`Applied`], so that that can read what it saved.
struct SharedLoss<T: Scalar>(Arc<LinearLoss<T>>);

impl<T: Scalar> LinearLoss<T> {
    /// Returns the gradients of hidden states, head and bias on the CPU; `None` for those that are not wanted.
    fn gradients(
        &self,
        saved: &cpu::SavedForward<T>,
        [hidden, head, bias]: [&Tensor; 3],
        upstream: &Upstream,
    ) -> Result<[Option<Tensor>; 3]> {
        let (batch, wanted) = (&self.call.batch, self.wanted);
        let storages = [hidden, head, bias].map(Tensor::storage_and_layout);
        let [of_hidden, of_head, of_bias] = &storages;
        let base = self.frozen.base();
        let hidden_view = hidden_view::<T>(host(HIDDEN, &of_hidden.0)?, of_hidden.1)?;
        let head_view = head_view::<T>(
            (host(HEAD, &of_head.0)?, of_head.1),
            (host(BIAS, &of_bias.0)?, of_bias.1),
            base.as_ref(),
            self.frozen.gathered.as_ref(),
        )?;
        let like = |tensor: &Tensor, values: Vec<T>| {
            Tensor::from_vec(values, tensor.shape(), &Device::Cpu)
        };

        let mut gradients = [None, None, None];
        if wanted.hidden {
            let values = saved.hidden_gradient(&head_view, batch, upstream)?;
            gradients[0] = Some(like(hidden, values)?);
        }
        if wanted.head {
            let [mut of_head, mut of_bias] =
                [head, bias].map(|tensor| bytemuck::zeroed_vec(tensor.elem_count()));
            let to = HeadGradient {
                head: &mut of_head,
                bias: &mut of_bias,
                width: head_view.width,
                first_token: head_view.first_trained(),
            };
            saved.add_head_gradient(hidden_view, &head_view, batch, upstream, to);
            for ((gradient, tensor), values) in
                (gradients[1..].iter_mut().zip([head, bias])).zip([of_head, of_bias])
            {
                if tensor.track_op() {
                    *gradient = Some(like(tensor, values)?);
                }
            }
        }
        Ok(gradients)
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
        let (op, batch) = (&*self.0, &self.0.call.batch);
        let (base, gathered) = (op.frozen.base(), op.frozen.gathered.as_ref());
        let (head, bias) = ((head, head_layout), (bias, bias_layout));
        let forward = head_view::<T>(head, bias, base.as_ref(), gathered)
            .and_then(|head| {
                let hidden = hidden_view(hidden, hidden_layout)?;
                cpu::forward(hidden, &head, &op.call, op.wanted)
            })
            .map(|saved| {
                let loss = storage_of(loss_values(batch, &saved.forward), hidden.dtype());
                (SavedForward::OnCpu(Box::new(saved)), loss)
            });
        let loss = op.saved.save(forward)?;
        Ok((loss, loss_shape(batch, hidden_layout.dims())))
    }

    #[cfg(feature = "cuda")]
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
        let base = op.frozen.base();
        let forward = cuda::stored_base(&base).and_then(|base| {
            let inputs = cuda::Inputs {
                hidden: (hidden, hidden_layout),
                head: (head, head_layout),
                base,
                bias: op.has_bias.then_some((bias, bias_layout)),
            };
            cuda::forward(&inputs, &op.call, op.wanted, op.direct)
        });
        let forward = forward.map(|(forward, loss)| (SavedForward::OnCuda(forward.into()), loss));
        let loss = op.saved.save(forward)?;
        Ok((loss, loss_shape(&op.call.batch, hidden_layout.dims())))
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
        let [of_hidden, of_head, of_bias] = match op.saved.forward()? {
            SavedForward::OnCpu(saved) => {
                op.gradients(saved, tensors, &Upstream::new(upstream)?)?
            }
            #[cfg(feature = "cuda")]
            SavedForward::OnCuda(forward) => cuda::backward(
                tensors,
                &op.frozen,
                op.has_bias,
                op.wanted,
                forward,
                upstream,
            )?,
        };
        Ok((of_hidden, of_head, of_bias))
    }
}
