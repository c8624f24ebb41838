//! In the place of `cuda.rs` where the crate is built without the feature `cuda`: `check_loss_device` lets
//! nothing come here.

use candle_core::{CudaStorage, Layout, Tensor};

use crate::backend::batch::Batch;
use crate::loss::LossOutput;
use crate::loss::residence::Residence;
use crate::loss::temperature::{Stepped, TemperatureSource};
use crate::{Error, Result, Statistics};

pub(super) enum Left {}

impl Left {
    pub fn output(&self, _: Tensor, _: &Batch) -> Result<LossOutput> {
        match *self {}
    }

    pub fn stepped(&self) -> Option<Stepped> {
        match *self {}
    }
}

pub(super) fn forward(
    _: &CudaStorage,
    _: &Layout,
    _: &Batch,
    _: &TemperatureSource,
    _: &Residence,
) -> Result<(Left, CudaStorage)> {
    Err(without_cuda())
}

pub(super) fn backward(_: &Tensor, left: &Left, _: &Tensor) -> Result<Tensor> {
    match *left {}
}

pub(super) fn statistics(_: &Tensor, _: &Batch, _: &Residence) -> Result<Statistics> {
    Err(without_cuda())
}

pub(super) fn value_and_gradient(
    _: &Tensor,
    _: &Batch,
    _: &TemperatureSource,
    _: &Residence,
) -> Result<(LossOutput, Tensor, Option<Stepped>)> {
    Err(without_cuda())
}

pub(super) fn forward_into(
    _: (&mut CudaStorage, &Layout),
    _: (&CudaStorage, &Layout),
    _: &Batch,
    _: &TemperatureSource,
    _: &Residence,
) -> Result<(LossOutput, Option<Stepped>)> {
    Err(without_cuda())
}

pub(super) fn forward_over(
    _: &mut CudaStorage,
    _: &Layout,
    _: &Batch,
    _: &TemperatureSource,
    _: &Residence,
) -> Result<(LossOutput, Option<Stepped>)> {
    Err(without_cuda())
}

fn without_cuda() -> Error {
    Error::Candle(candle_core::Error::NotCompiledWithCudaSupport)
}
