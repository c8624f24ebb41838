//! In the place of `cuda.rs` where the crate is built without the feature `cuda`:
//! `check_loss_device` lets nothing come here.

use candle_core::{CudaStorage, Layout, Tensor};

use super::Pass;
use crate::backend::batch::Batch;
use crate::backend::cpu::linear::Wanted;
use crate::loss::LossOutput;
use crate::loss::temperature::Stepped;
use crate::{Error, Result};

pub(super) enum Left {}

impl Left {
    pub fn output(&self, _: Tensor, _: &Batch) -> Result<LossOutput> {
        match *self {}
    }

    pub fn stepped(&self) -> Option<Stepped> {
        match *self {}
    }

    pub fn gradient(&self) -> Option<Tensor> {
        match *self {}
    }
}

pub(super) fn forward(
    _: (&CudaStorage, &Layout),
    _: (&CudaStorage, &Layout),
    _: Option<(&CudaStorage, &Layout)>,
    _: &Pass,
) -> Result<(Left, CudaStorage)> {
    Err(Error::Candle(
        candle_core::Error::NotCompiledWithCudaSupport,
    ))
}

pub(super) fn backward(
    _: [&Tensor; 3],
    _: bool,
    _: Wanted,
    left: &Left,
    _: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    match *left {}
}
