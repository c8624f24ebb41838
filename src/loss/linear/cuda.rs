//! The linear loss on CUDA: from candle's storage to the backend's launches. Nothing here waits for
//! the device.

use std::collections::HashMap;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaStorage, DType, Layout, Tensor};

use super::{HIDDEN, Pass};
use crate::backend::batch::Batch;
use crate::backend::cpu::linear::Wanted;
use crate::backend::cuda::dense::DeviceElement;
use crate::backend::cuda::linear::{
    DeviceInputs, DeviceLinear, DeviceMatrix, DeviceShares, WantedOfHead,
};
use crate::backend::launch::LinearRows;
use crate::loss::LossOutput;
use crate::loss::device::{Measured, at_temperature, cuda, part, tensor, with_device_element};
use crate::loss::head::{BIAS, Gathered, HEAD};
use crate::loss::temperature::Stepped;
use crate::loss::tensor::matrix_shape;
use crate::{Result, Temperature};

/// What a forward pass left, on the device but for the plan.
pub(super) struct Left {
    batch: DeviceLinear,
    gradient: CudaSlice<f32>,
    /// Where the head's gradient is wanted.
    shares: Option<DeviceShares>,
    measured: Measured,
}

impl Left {
    pub fn output(&self, loss: Tensor, batch: &Batch) -> LossOutput {
        self.measured.output(loss, batch)
    }

    pub fn stepped(&self) -> Option<Stepped> {
        self.measured.stepped()
    }
}

pub(super) fn forward(
    hidden: (&CudaStorage, &Layout),
    head: (&CudaStorage, &Layout),
    bias: Option<(&CudaStorage, &Layout)>,
    pass: &Pass,
) -> Result<(Left, CudaStorage)> {
    with_device_element!(hidden.0.dtype(), HIDDEN, T => forward_of::<T>(hidden, head, bias, pass))
}

fn forward_of<T: DeviceElement>(
    hidden: (&CudaStorage, &Layout),
    head: (&CudaStorage, &Layout),
    bias: Option<(&CudaStorage, &Layout)>,
    pass: &Pass,
) -> Result<(Left, CudaStorage)> {
    let device = &hidden.0.device;
    let none = HashMap::new();
    let gathered = match pass.gathered {
        Some(Gathered::OnDevice(sets)) => sets,
        _ => &none,
    };
    let rows = LinearRows::new(pass.batch, |set| gathered.contains_key(&set));
    let frozen: Vec<_> = (rows.grouped_sets())
        .map(|set| gathered.get(&set).map(Tensor::storage_and_layout))
        .collect();
    let frozen = frozen.iter().map(|rows| match rows {
        Some((storage, layout)) => Ok(Some(part(
            cuda(HEAD, storage)?.as_cuda_slice::<T>()?,
            layout,
        ))),
        None => Ok(None),
    });
    let inputs = DeviceInputs {
        frozen: frozen.collect::<Result<_>>()?,
        ..inputs::<T>(hidden, head, bias)?
    };
    let sets = pass.residence.sets(device, &pass.batch.sets)?;
    let on_device = DeviceLinear::new(device, sets, rows)?;
    let next = |temperature: &Temperature| on_device.plan().next(temperature);
    let forwarded = at_temperature(pass.source, next, |temperature| {
        let wanted = pass.wanted.hidden || pass.wanted.head;
        on_device.forward(&inputs, temperature, wanted)
    })?;
    let shares = (pass.wanted.head).then(|| on_device.shares(&pass.batch.sets, forwarded.errors));
    let left = Left {
        shares: shares.transpose()?,
        batch: on_device,
        gradient: forwarded.gradient,
        measured: Measured::new(
            device,
            forwarded.temperature,
            forwarded.statistics,
            pass.source,
        ),
    };
    let loss = CudaStorage::wrap_cuda_slice(forwarded.loss, device.clone());
    Ok((left, loss))
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
    let upstream = upstream.to_dtype(DType::F32)?.contiguous()?;
    let (upstream, upstream_layout) = upstream.storage_and_layout();
    let upstream = cuda(HIDDEN, &upstream)?.as_cuda_slice::<f32>()?;
    let upstream = part(upstream, upstream_layout);
    let (temperature, _) = left.measured.temperature.storage_and_layout();
    let temperature = cuda(HIDDEN, &temperature)?.as_cuda_slice::<f64>()?;
    let width = hidden.dims().last().copied().unwrap_or(0);
    let device = hidden.device().as_cuda_device()?;
    let of_hidden = match wanted.hidden {
        true => {
            let gradient =
                (left.batch).backward::<T>(width, &left.gradient, temperature, &upstream)?;
            Some(tensor(device, gradient, hidden.shape()))
        }
        false => None,
    };
    let Some(shares) = &left.shares else {
        return Ok([of_hidden, None, None]);
    };
    let of_head = WantedOfHead {
        vocabulary: head.dim(0)?,
        head: head.track_op(),
        bias: bias.track_op(),
    };
    let storages = [hidden, head, bias].map(Tensor::storage_and_layout);
    let [
        hidden,
        (head_storage, head_layout),
        (bias_storage, bias_layout),
    ] = &storages;
    let bias_of = has_bias.then_some((cuda(BIAS, bias_storage)?, *bias_layout));
    let inputs = inputs::<T>(
        (cuda(HIDDEN, &hidden.0)?, hidden.1),
        (cuda(HEAD, head_storage)?, head_layout),
        bias_of,
    )?;
    let gradients = (left.batch).head_gradient(&inputs, shares, temperature, &upstream, of_head)?;
    let [of_weight, of_bias] = gradients;
    Ok([
        of_hidden,
        of_weight.map(|gradient| tensor(device, gradient, head.shape())),
        of_bias.map(|gradient| tensor(device, gradient, bias.shape())),
    ])
}

fn inputs<'a, T: DeviceElement>(
    hidden: (&'a CudaStorage, &Layout),
    head: (&'a CudaStorage, &Layout),
    bias: Option<(&'a CudaStorage, &Layout)>,
) -> Result<DeviceInputs<'a, T>> {
    let (_, width) = matrix_shape(HIDDEN, hidden.1)?;
    Ok(DeviceInputs {
        width,
        hidden: matrix::<T>(HIDDEN, hidden)?,
        head: matrix::<T>(HEAD, head)?,
        bias: match bias {
            Some((storage, layout)) => Some(part(storage.as_cuda_slice::<T>()?, layout)),
            None => None,
        },
        frozen: Vec::new(),
    })
}

fn matrix<'a, T: DeviceElement>(
    what: &'static str,
    (storage, layout): (&'a CudaStorage, &Layout),
) -> Result<DeviceMatrix<'a, T>> {
    let (stride, _) = matrix_shape(what, layout)?;
    Ok(DeviceMatrix {
        values: part(storage.as_cuda_slice::<T>()?, layout),
        stride,
    })
}
