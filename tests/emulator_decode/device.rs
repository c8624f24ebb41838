//! Runs steps of a beam search in the emulator.

use bytemuck::cast_slice;
use candle_core::{Device, Tensor};
use candle_trie::launch::{
    DecodeBeams, DecodeChoice, DecodeFault, DecodePlan, DecodeResults, DecodeScores, DeviceMatrix,
};
use candle_trie::{BeamSearch, BeamStep, ExactSearch, Result, SearchResult};
use candle_trie_emulator::{Emulator, Fault, Memory, Report, same_for_every_schedule};

use crate::emulated::{EmulatedStream, Failure, LIMITS, pointer, schedules};
use crate::number::Number;

/// Logits `[rows, width]` whose rows lie `row_stride` apart.
pub struct Logits<T> {
    values: Vec<T>,
    width: usize,
    row_stride: usize,
}

impl<T: Number> Logits<T> {
    pub fn new(values: &[f64], width: usize) -> Self {
        Self {
            values: values.iter().map(|&value| T::from_f64(value)).collect(),
            width,
            row_stride: width,
        }
    }

    /// The same with unused elements before, between and behind the rows.
    pub fn spread(&self, row_stride: usize) -> Self {
        let mut values = Vec::new();
        for row in self.values.chunks(self.width) {
            values.extend(row);
            values.resize(
                values.len().next_multiple_of(row_stride),
                T::from_f64(f64::NAN),
            );
        }
        Self {
            values,
            width: self.width,
            row_stride,
        }
    }

    /// The columns of these tokens alone.
    pub fn columns(&self, tokens: &[u32]) -> Self {
        let rows = self.values.chunks(self.row_stride);
        let values = rows.flat_map(|row| tokens.iter().map(|&token| row[token as usize]));
        Self {
            values: values.collect(),
            width: tokens.len(),
            row_stride: tokens.len(),
        }
    }

    /// What the CPU is to search with: these very numbers in f64.
    pub fn tensor(&self) -> Tensor {
        let rows = self.values.chunks(self.row_stride);
        let count = rows.len();
        let values: Vec<f64> = rows
            .flat_map(|row| row[..self.width].iter().map(|value| value.to_f64()))
            .collect();
        Tensor::from_vec(values, (count, self.width), &Device::Cpu).unwrap()
    }
}

/// What the kernels leave of one step.
#[derive(Debug, Clone)]
pub struct Answer {
    pub choices: Vec<DecodeChoice>,
    pub faults: Vec<DecodeFault>,
    pub scores: Report,
    pub choosing: Report,
}

/// One step for these beams.
pub fn decode<T: Number>(
    emulator: &Emulator,
    beams: &DecodeBeams,
    logits: &Logits<T>,
) -> Result<Answer, Fault> {
    issue(emulator, beams, logits).map_err(|failure| failure.0)
}

fn issue<T: Number>(
    emulator: &Emulator,
    beams: &DecodeBeams,
    logits: &Logits<T>,
) -> Result<Answer, Failure> {
    let plan = DecodePlan::new(beams, T::ELEMENT, logits.width, &LIMITS).unwrap();
    let plan = plan.expect("a living beam");
    let mut stream = EmulatedStream::new(emulator, Memory::new(), LIMITS, u32::MAX);
    let memory = &mut stream.memory;
    let matrix = DeviceMatrix {
        address: Some(pointer(memory.upload("logits", &logits.values))),
        row_stride: logits.row_stride as u64,
    };
    let choices = memory.allocate::<DecodeChoice>("choices", beams.choices());
    let faults = memory.allocate::<DecodeFault>("faults", beams.beams().len());
    let results = DecodeResults {
        choices: pointer(choices),
        faults: pointer(faults),
    };
    // SAFETY: the emulator looks at every address.
    unsafe { plan.issue(&mut stream, matrix, &results) }?;
    Ok(Answer {
        scores: stream.report("decode_scores"),
        choosing: stream.report("decode_choices"),
        choices: stream.memory.download(choices)?,
        faults: stream.memory.download(faults)?,
    })
}

/// [`BeamSearch::step`] by the kernels, the same bits in every schedule.
pub fn step<T: Number>(search: &mut BeamSearch, logits: &Logits<T>) -> Result<Option<BeamStep>> {
    if search.active_beams() == 0 {
        return Ok(None);
    }
    let beams = search.decode_beams()?;
    take(search, &beams, logits)
}

/// The same from the logits of those tokens alone that any beam needs.
pub fn gathered_step<T: Number>(
    search: &mut BeamSearch,
    logits: &Logits<T>,
) -> Result<Option<BeamStep>> {
    if search.active_beams() == 0 {
        return Ok(None);
    }
    let mut beams = search.decode_beams()?;
    let gathered = logits.columns(beams.gather());
    take(search, &beams, &gathered)
}

fn take<T: Number>(
    search: &mut BeamSearch,
    beams: &DecodeBeams,
    logits: &Logits<T>,
) -> Result<Option<BeamStep>> {
    let mut answer = None;
    same_for_every_schedule(schedules(), |emulator| {
        let found = decode(&emulator, beams, logits)?;
        let bits = [
            cast_slice::<_, u32>(&found.choices),
            cast_slice(&found.faults),
        ]
        .concat();
        answer = Some(found);
        Ok(bits)
    })
    .unwrap_or_else(|fault| panic!("{:?}: {fault}", T::ELEMENT));
    let answer = answer.expect("a schedule");
    search.apply_choices(beams, &answer.choices, &answer.faults)
}

/// [`ExactSearch::step`] by the kernels, the same bits in every schedule; `gathered`: from the logits of those tokens alone
/// that any prefix needs.
pub fn expand<T: Number>(
    search: &mut ExactSearch,
    logits: &Logits<T>,
    gathered: bool,
) -> Result<()> {
    let mut beams = search.decode_prefixes()?;
    let columns = gathered.then(|| logits.columns(beams.gather()));
    let logits = columns.as_ref().unwrap_or(logits);
    let mut answer = None;
    same_for_every_schedule(schedules(), |emulator| {
        let (scores, faults) = score(&emulator, &beams, logits).map_err(|failure| failure.0)?;
        let bits = [cast_slice::<_, u32>(&scores), cast_slice(&faults)].concat();
        answer = Some((scores, faults));
        Ok(bits)
    })
    .unwrap_or_else(|fault| panic!("{:?}: {fault}", T::ELEMENT));
    let (scores, faults) = answer.expect("a schedule");
    search.apply_scores(&beams, &scores, &faults)
}

fn score<T: Number>(
    emulator: &Emulator,
    beams: &DecodeBeams,
    logits: &Logits<T>,
) -> Result<(Vec<f32>, Vec<DecodeFault>), Failure> {
    let plan = DecodePlan::new(beams, T::ELEMENT, logits.width, &LIMITS).unwrap();
    let plan = plan.expect("a prefix");
    let mut stream = EmulatedStream::new(emulator, Memory::new(), LIMITS, u32::MAX);
    let memory = &mut stream.memory;
    let matrix = DeviceMatrix {
        address: Some(pointer(memory.upload("logits", &logits.values))),
        row_stride: logits.row_stride as u64,
    };
    let scores = memory.allocate::<f32>("log-probabilities", beams.candidates());
    let faults = memory.allocate::<DecodeFault>("faults", beams.beams().len());
    let results = DecodeScores {
        log_probabilities: pointer(scores),
        faults: pointer(faults),
    };
    // SAFETY: the emulator looks at every address.
    unsafe { plan.issue_scores(&mut stream, matrix, &results) }?;
    Ok((
        stream.memory.download(scores)?,
        stream.memory.download(faults)?,
    ))
}

/// The same items in the same order, with the same probabilities.
pub fn assert_same_found(found: &[SearchResult], expected: &[SearchResult], what: &str) {
    let items = |found: &[SearchResult]| -> Vec<Vec<u64>> {
        found.iter().map(|found| found.items.clone()).collect()
    };
    assert_eq!(items(found), items(expected), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        for (found, expected) in [
            (found.log_probability, expected.log_probability),
            (found.score, expected.score),
        ] {
            let close = (found - expected).abs() <= 1e-5 * expected.abs().max(1.0);
            assert!(
                close || found == expected,
                "{what}: {found}, not {expected}"
            );
        }
    }
}
