//! In the place of `cuda.rs` where the crate is built without the feature `cuda`: the check of the
//! logits' device lets nothing come here.

use candle_core::Tensor;

use crate::launch::{DecodeBeams, DecodeChoice, DecodeFault};
use crate::{Error, Result};

pub(super) fn decode(_: &Tensor, _: &DecodeBeams) -> Result<(Vec<DecodeChoice>, Vec<DecodeFault>)> {
    Err(Error::Candle(
        candle_core::Error::NotCompiledWithCudaSupport,
    ))
}
