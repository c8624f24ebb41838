//! The linear loss on CUDA: a `launch::LinearPass` over candle's storage. Nothing here waits for the
//! device.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Tensor};
use cudarc::driver::CudaSlice;

use super::{HIDDEN, Pass};
use crate::backend::batch::Batch;
use crate::backend::cpu::linear::Wanted;
use crate::backend::cuda::Executor;
use crate::backend::cuda::dense::{DeviceElement, DeviceSets, uninitialised};
use crate::backend::cuda::work::Work;
use crate::backend::launch::{
    DevicePtr, LinearForwarded, LinearGradients, LinearPass, LinearResults, LinearRows,
    LinearTensors, LinearUpstream,
};
use crate::loss::LossOutput;
use crate::loss::device::{Measured, at_temperature, cuda, part, tensor, with_device_element};
use crate::loss::head::HEAD;
use crate::loss::temperature::Stepped;
use crate::loss::tensor::matrix_shape;
use crate::{Error, Result, Statistics, Temperature};

/// What a forward pass left, on the device but for the plan.
pub(super) struct Left {
    executor: Executor,
    pass: LinearPass,
    sets: Arc<DeviceSets>,
    forwarded: LinearForwarded,
    /// The memory of `forwarded`.
    kept: Vec<CudaSlice<u32>>,
    measured: Measured,
    /// That of the hidden states, where the forward pass has made it.
    gradient: Option<Tensor>,
}

/// A tensor of candle.
type Stored<'a> = (&'a CudaStorage, &'a Layout);

impl Left {
    pub fn output(&self, loss: Tensor, batch: &Batch) -> Result<LossOutput> {
        self.measured.output(loss, batch)
    }

    pub fn stepped(&self) -> Option<Stepped> {
        self.measured.stepped()
    }

    pub fn gradient(&self) -> Option<Tensor> {
        self.gradient.clone()
    }
}

pub(super) fn forward(
    hidden: Stored,
    head: Stored,
    bias: Option<Stored>,
    pass: &Pass,
) -> Result<(Left, CudaStorage)> {
    with_device_element!(hidden.0.dtype(), HIDDEN, T => forward_of::<T>(hidden, head, bias, pass))
}

fn forward_of<T: DeviceElement>(
    hidden: Stored,
    head: Stored,
    bias: Option<Stored>,
    loss: &Pass,
) -> Result<(Left, CudaStorage)> {
    let device = &hidden.0.device;
    let rows = LinearRows::new(loss.batch);
    let (_, width) = matrix_shape(HIDDEN, hidden.1)?;
    let gradients = match loss.wanted {
        Wanted { head: true, .. } => LinearGradients::All(&loss.batch.sets),
        Wanted { hidden: true, .. } if loss.direct => LinearGradients::Direct,
        Wanted { hidden: true, .. } => LinearGradients::Hidden,
        _ => LinearGradients::None,
    };
    let executor = Executor::new(device)?;
    let (limits, most_scores) = (executor.limits(), LinearPass::MOST_SCORES);
    let pass = LinearPass::new(rows, T::ELEMENT, width, gradients, limits, most_scores)?;
    let sets = loss.residence.sets(device, &loss.batch.sets)?;
    let mut losses = uninitialised::<f32>(device, pass.rows().losses())?;
    let mut used = uninitialised(device, 1)?;
    let mut statistics = uninitialised(device, Statistics::LENGTH + 1)?;
    let mut gradient = (gradients == LinearGradients::Direct)
        .then(|| uninitialised::<T>(device, hidden.1.shape().elem_count()))
        .transpose()?;
    let next = |temperature: &Temperature| pass.rows().next(temperature);
    let (forwarded, kept) = at_temperature(loss.source, next, |temperature| {
        let mut work = Work::new(&executor, device);
        let mut tensors = tensors::<T>(&mut work, &sets, [hidden, head], bias)?;
        if let Some(previous) = &temperature.previous {
            tensors.previous = work.read(previous.slice(..));
        }
        let results = LinearResults {
            loss: there(work.write(&mut losses))?,
            statistics: there(work.write(&mut statistics))?,
            temperature: there(work.write(&mut used))?,
            hidden_gradient: gradient.as_mut().and_then(|gradient| work.write(gradient)),
        };
        // SAFETY: the sets are those of the rows, whose tokens the head was checked for, and the results
        // have the sizes that are asked for. `work` holds all of candle's until after the last launch;
        // what it allocates is of the same stream, which frees it behind the launches.
        let forwarded = unsafe { pass.forward(&mut work, &tensors, temperature.plan, &results) }?;
        Ok((forwarded, work.into_kept()))
    })?;
    let left = Left {
        executor,
        pass,
        sets,
        forwarded,
        kept,
        measured: Measured::new(device, used, statistics, loss.source),
        gradient: gradient.map(|gradient| tensor(device, gradient, hidden.1.shape())),
    };
    Ok((left, CudaStorage::wrap_cuda_slice(losses, device.clone())))
}

/// The gradients of hidden states, head and bias, where each is wanted.
pub(super) fn backward(
    [hidden, head, bias]: [&Tensor; 3],
    has_bias: bool,
    wanted: Wanted,
    left: &Left,
    upstream: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    with_device_element!(hidden.dtype(), HIDDEN, T => {
        backward_of::<T>([hidden, head, bias], has_bias, wanted, left, upstream)
    })
}

fn backward_of<T: DeviceElement>(
    [hidden, head, bias]: [&Tensor; 3],
    has_bias: bool,
    wanted: Wanted,
    left: &Left,
    upstream: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    let device = hidden.device().as_cuda_device()?;
    let upstream = upstream.to_dtype(DType::F32)?.contiguous()?;
    let (upstream, upstream_layout) = upstream.storage_and_layout();
    let upstream = cuda(HIDDEN, &upstream)?.as_cuda_slice::<f32>()?;
    let (temperature, _) = left.measured.temperature.storage_and_layout();
    let temperature = cuda(HIDDEN, &temperature)?.as_cuda_slice::<f64>()?;
    let inputs = [hidden, head, bias].map(Tensor::storage_and_layout);
    let stored = |index: usize| -> Result<Stored> {
        let (storage, layout) = &inputs[index];
        Ok((cuda(HIDDEN, storage)?, layout))
    };
    let (mut of_hidden, mut of_head) = (None, [None, None]);

    let mut work = Work::new(&left.executor, device);
    let from = LinearUpstream {
        loss: there(work.read(part(upstream, upstream_layout)))?,
        temperature: there(work.read(temperature.as_view()))?,
    };
    for memory in &left.kept {
        work.read(memory.as_view());
    }
    let Left {
        pass, forwarded, ..
    } = left;
    let bias_of = if has_bias { Some(stored(2)?) } else { None };
    // The launches read them where the forward pass did.
    tensors::<T>(&mut work, &left.sets, [stored(0)?, stored(1)?], bias_of)?;
    if wanted.hidden {
        let room = uninitialised::<T>(device, hidden.elem_count())?;
        let gradient = there(work.write(of_hidden.insert(room)))?;
        // SAFETY: as in `forward_of`.
        unsafe { pass.hidden_gradient(&mut work, forwarded, from, gradient) }?;
    }
    if wanted.head {
        let mut gradients = [None; 2];
        let rooms = gradients.iter_mut().zip(&mut of_head);
        for ((gradient, room), of) in rooms.zip([head, bias]) {
            if of.track_op() {
                let zeros = device.alloc_zeros::<T>(of.elem_count().max(1))?;
                *gradient = work.write(room.insert(zeros));
            }
        }
        // SAFETY: as in `forward_of`.
        unsafe { pass.head_gradient(&mut work, forwarded, from, gradients) }?;
    }
    drop(work);
    let [of_weight, of_bias] = of_head;
    Ok([(of_hidden, hidden), (of_weight, head), (of_bias, bias)]
        .map(|(gradient, of)| gradient.map(|gradient| tensor(device, gradient, of.shape()))))
}

fn tensors<'a, T: DeviceElement + 'a>(
    work: &mut Work<'a>,
    sets: &'a DeviceSets,
    [hidden, head]: [Stored<'a>; 2],
    bias: Option<Stored<'a>>,
) -> Result<LinearTensors> {
    Ok(LinearTensors {
        hidden: address::<T>(work, hidden)?,
        hidden_stride: matrix_shape(HIDDEN, hidden.1)?.0 as u64,
        head: there(address::<T>(work, head)?)?,
        head_stride: matrix_shape(HEAD, head.1)?.0 as u64,
        bias: bias.map_or(Ok(None), |bias| address::<T>(work, bias))?,
        tokens: work.tokens(sets),
        previous: None,
    })
}

fn address<'a, T: DeviceElement + 'a>(
    work: &mut Work<'a>,
    (storage, layout): Stored<'a>,
) -> Result<Option<DevicePtr>> {
    Ok(work.read(part(storage.as_cuda_slice::<T>()?, layout)))
}

/// An address that every buffer with elements has.
fn there(address: Option<DevicePtr>) -> Result<DevicePtr> {
    address.ok_or_else(|| Error::Malformed {
        what: "buffer",
        detail: "it has no address on the device".into(),
    })
}
