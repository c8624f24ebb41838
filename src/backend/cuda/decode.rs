//! A step of beam search on a CUDA device: uploads the beams, launches the plans of
//! `launch::decode`, and brings the choices to the host.

use bytemuck::cast_slice;
use candle_core::CudaDevice;
use cudarc::driver::CudaView;

use super::dense::{DeviceElement, DeviceLogits, uninitialised};
use super::{Buffers, Executor};
use crate::Result;
use crate::backend::launch::{
    Decode, DecodeBeams, DecodeBuffers, DecodeChoice, DecodeFault, DecodeInputs, places_of_parts,
};

/// What was chosen, and what was wrong with each beam's logits.
pub(crate) type Decoded = (Vec<DecodeChoice>, Vec<DecodeFault>);

/// Waits for the device: what a model reads next depends on the choices.
pub(crate) fn decode<T: DeviceElement>(
    device: &CudaDevice,
    logits: &DeviceLogits<CudaView<T>>,
    beams: &DecodeBeams,
) -> Result<Decoded> {
    let executor = Executor::new(device)?;
    let Some(plan) = Decode::new(beams, T::ELEMENT, logits.width, executor.limits())? else {
        return Ok((Vec::new(), Vec::new()));
    };
    let uploaded: [&[u32]; 4] = [
        cast_slice(&beams.beams),
        cast_slice(&beams.edges),
        &beams.tokens,
        &beams.segments,
    ];
    let words = device.clone_htod(&uploaded.concat())?;
    let choice_words = beams.choices() * size_of::<DecodeChoice>() / size_of::<u32>();
    let fault_words = beams.beams.len() * size_of::<DecodeFault>() / size_of::<u32>();
    let mut answer = uninitialised::<u32>(device, choice_words + fault_words)?;
    let mut log_probabilities = uninitialised::<f32>(device, beams.candidates())?;
    let mut ranks = uninitialised::<u8>(device, beams.candidates() * DecodeBeams::RANK_BYTES)?;

    let mut buffers = Buffers::new();
    let first = buffers.read(&executor, &words);
    let [beams, edges, tokens, segments] = places_of_parts(first, uploaded.map(size_of_val), 1);
    let inputs = DecodeInputs {
        logits: buffers.read(&executor, &logits.values),
        row_stride: logits.stride as u64,
        beams,
        edges,
        tokens,
        segments,
    };
    let choices = buffers.write(&executor, &mut answer);
    let outputs = DecodeBuffers {
        log_probabilities: buffers.write(&executor, &mut log_probabilities),
        ranks: buffers.write(&executor, &mut ranks),
        choices,
        faults: choices.map(|choices| choices.offset((choice_words * size_of::<u32>()) as u64)),
    };
    // SAFETY: the parameters are the plan's, and the buffers have the sizes that it asks for.
    unsafe { executor.launch(&plan.scores(&inputs, &outputs), buffers) }?;

    let mut buffers = Buffers::new();
    buffers.read(&executor, &words);
    buffers.read(&executor, &log_probabilities);
    buffers.read(&executor, &ranks);
    buffers.write(&executor, &mut answer);
    // SAFETY: as above; the addresses are those of the same buffers.
    unsafe { executor.launch(&plan.choices(&inputs, &outputs), buffers) }?;

    let answer = device.clone_dtoh(&answer)?;
    let (choices, faults) = answer.split_at(choice_words.min(answer.len()));
    Ok((cast_slice(choices).to_vec(), cast_slice(faults).to_vec()))
}
