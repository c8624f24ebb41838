//! A step of a search on CUDA: a `launch::DecodePlan` over candle's storage.

use bytemuck::{Pod, cast_slice};
use candle_core::Tensor;

use crate::Result;
use crate::backend::cuda::Executor;
use crate::backend::cuda::stream::{CandleStream, uninitialised};
use crate::launch::{
    DecodeBeams, DecodeChoice, DecodeFault, DecodePlan, DecodeResults, DecodeScores, DeviceMatrix,
    DevicePtr,
};
use crate::loss::device::{cuda, element, read_matrix, require_address};

const LOGITS: &str = "logits";

/// Returns the chosen candidates, and what is wrong with the logits of each beam.
pub(super) fn decode(
    logits: &Tensor,
    beams: &DecodeBeams,
) -> Result<(Vec<DecodeChoice>, Vec<DecodeFault>)> {
    let (choices, faults) = (beams.choices(), beams.beams().len());
    run(
        logits,
        beams,
        choices,
        faults,
        |plan, stream, logits, [choices, faults]| {
            let results = DecodeResults { choices, faults };
            // SAFETY: `run` gives what is asked for.
            unsafe { plan.issue(stream, logits, &results) }
        },
    )
}

/// Returns the log-probability of each candidate, and what is wrong with the logits of each beam.
pub(super) fn scores(logits: &Tensor, beams: &DecodeBeams) -> Result<(Vec<f32>, Vec<DecodeFault>)> {
    let (faults, candidates) = (beams.beams().len(), beams.candidates());
    // Faults are of eight bytes: the four bytes of a score would leave them in the middle of a word.
    let (faults, scores) = run(
        logits,
        beams,
        faults,
        candidates,
        |plan, stream, logits, places| {
            let [faults, log_probabilities] = places;
            let results = DecodeScores {
                log_probabilities,
                faults,
            };
            // SAFETY: `run` gives what is asked for.
            unsafe { plan.issue_scores(stream, logits, &results) }
        },
    )?;
    Ok((scores, faults))
}

/// Calls `issue` with a plan for the beams and with places for so many results of two kinds, and returns the results: one
/// transfer, and none if there is no beam. Waits for the device, because what a model reads next depends on them.
///
/// The tokens were checked against the width of the logits, the places have the sizes that are asked for, and the stream holds
/// all of candle's until after the launches. What it allocates it frees behind them.
fn run<A: Pod, B: Pod>(
    logits: &Tensor,
    beams: &DecodeBeams,
    firsts: usize,
    seconds: usize,
    issue: impl FnOnce(&DecodePlan, &mut CandleStream, DeviceMatrix, [DevicePtr; 2]) -> Result<()>,
) -> Result<(Vec<A>, Vec<B>)> {
    let (storage, layout) = logits.storage_and_layout();
    let storage = cuda(LOGITS, &storage)?;
    let (device, executor) = (&storage.device, Executor::new(&storage.device)?);
    let width = logits.dims().last().copied().unwrap_or(0);
    let element = element(LOGITS, logits.dtype())?;
    let Some(plan) = DecodePlan::new(beams, element, width, executor.limits())? else {
        return Ok((Vec::new(), Vec::new()));
    };
    let [first_words, second_words] =
        [firsts * size_of::<A>(), seconds * size_of::<B>()].map(|bytes| bytes / size_of::<u32>());
    let mut answer = uninitialised::<u32>(device, first_words + second_words)?;

    let mut stream = CandleStream::new(&executor);
    let logits = read_matrix(&mut stream, LOGITS, (storage, layout))?;
    let first = require_address(stream.write(&mut answer))?;
    let second = first.offset((first_words * size_of::<u32>()) as u64);
    issue(&plan, &mut stream, logits, [first, second])?;
    drop(stream);

    let answer = device.clone_dtoh(&answer)?;
    let (first, second) = answer.split_at(first_words.min(answer.len()));
    Ok((cast_slice(first).to_vec(), cast_slice(second).to_vec()))
}
