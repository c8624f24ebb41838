//! A step of beam search on CUDA: from candle's storage to the backend's launches.

use candle_core::{DType, Tensor};
use half::{bf16, f16};

use crate::backend::cuda::decode::{Decoded, decode as launch};
use crate::backend::cuda::dense::DeviceElement;
use crate::launch::DecodeBeams;
use crate::loss::{cuda_storage, device_logits};
use crate::{Error, Result};

pub(super) fn decode(logits: &Tensor, beams: &DecodeBeams) -> Result<Decoded> {
    match logits.dtype() {
        DType::F32 => decode_as::<f32>(logits, beams),
        DType::F16 => decode_as::<f16>(logits, beams),
        DType::BF16 => decode_as::<bf16>(logits, beams),
        other => Err(Error::Unsupported {
            what: "logits",
            expected: "dtype f32, f16 or bf16 on CUDA".into(),
            actual: format!("{other:?}"),
        }),
    }
}

fn decode_as<T: DeviceElement>(logits: &Tensor, beams: &DecodeBeams) -> Result<Decoded> {
    let (storage, layout) = logits.storage_and_layout();
    let storage = cuda_storage("logits", &storage)?;
    launch(
        &storage.device,
        &device_logits::<T>(storage, layout)?,
        beams,
    )
}
