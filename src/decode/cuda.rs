//! A step of beam search on CUDA: a `launch::DecodePlan` over candle's storage.

use bytemuck::cast_slice;
use candle_core::Tensor;

use crate::Result;
use crate::backend::cuda::Executor;
use crate::backend::cuda::stream::{CandleStream, uninitialised};
use crate::launch::{DecodeBeams, DecodeChoice, DecodeFault, DecodePlan, DecodeResults};
use crate::loss::device::{cuda, element, read_matrix, require_address};

const LOGITS: &str = "logits";

/// Returns the chosen candidates, and the fault of each beam's logits. Waits for the device, because the choices determine what the
/// model reads next.
pub(super) fn decode(
    logits: &Tensor,
    beams: &DecodeBeams,
) -> Result<(Vec<DecodeChoice>, Vec<DecodeFault>)> {
    let (storage, layout) = logits.storage_and_layout();
    let storage = cuda(LOGITS, &storage)?;
    let (device, executor) = (&storage.device, Executor::new(&storage.device)?);
    let width = logits.dims().last().copied().unwrap_or(0);
    let element = element(LOGITS, logits.dtype())?;
    let Some(plan) = DecodePlan::new(beams, element, width, executor.limits())? else {
        return Ok((Vec::new(), Vec::new()));
    };
    let choice_words = beams.choices() * size_of::<DecodeChoice>() / size_of::<u32>();
    let fault_words = beams.beams().len() * size_of::<DecodeFault>() / size_of::<u32>();
    let mut answer = uninitialised::<u32>(device, choice_words + fault_words)?;

    let mut stream = CandleStream::new(&executor);
    let logits = read_matrix(&mut stream, LOGITS, (storage, layout))?;
    let choices = require_address(stream.write(&mut answer))?;
    let results = DecodeResults {
        choices,
        faults: choices.offset((choice_words * size_of::<u32>()) as u64),
    };
    // SAFETY: the tokens were checked against the width, and the results have the documented sizes. The stream holds candle's
    // buffers until the launches are issued, and frees its own memory in the order of the stream.
    unsafe { plan.issue(&mut stream, logits, &results) }?;
    drop(stream);

    let answer = device.clone_dtoh(&answer)?;
    let (choices, faults) = answer.split_at(choice_words.min(answer.len()));
    Ok((cast_slice(choices).to_vec(), cast_slice(faults).to_vec()))
}
