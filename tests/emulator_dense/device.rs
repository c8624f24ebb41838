//! Runs the dense operation in the emulator.

use candle_trie::launch::{
    DensePlan, DenseRows, DenseTensors, DeviceLimits, DeviceMatrix, DevicePtr, ForwardResults,
    Upstream,
};
use candle_trie::reference::{self, Reference};
use candle_trie::{Bear, Convention, MaskedSoftmaxLoss, Rows, Statistics, Temperature, TokenSets};
use candle_trie_emulator::{Buffer, Emulator, Fault, Memory, Report, same_for_every_schedule};

use crate::emulated::{EmulatedStream, Failure, LIMITS, pointer, schedules, upload_sets};
use crate::number::Number;

/// How the gradient comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradient {
    /// Not at all.
    None,
    /// By the launch that makes the loss.
    Fused,
    /// By that launch, over the logits.
    FusedOverLogits,
    /// By a second launch, from this upstream gradient.
    Backward,
    /// By a second launch, over the logits.
    BackwardOverLogits,
}

pub const GRADIENTS: [Gradient; 5] = [
    Gradient::None,
    Gradient::Fused,
    Gradient::FusedOverLogits,
    Gradient::Backward,
    Gradient::BackwardOverLogits,
];

/// A batch and all that it is computed with.
pub struct Case<'a, T> {
    pub sets: &'a TokenSets,
    pub rows: &'a Rows,
    /// `[N, row_stride]`, of which `width` count.
    pub logits: Vec<T>,
    pub width: usize,
    pub row_stride: usize,
    pub temperature: Temperature,
    /// Whether the temperature so far is on the device (as twice what the host believes).
    pub resident: bool,
    pub convention: Convention,
    pub bear: Option<Bear>,
    pub gradient: Gradient,
    pub limits: DeviceLimits,
    /// The number of the first position: only what rows say is shifted by it.
    pub first_position: u32,
    /// Element of the gradient's buffer that it begins at.
    pub gradient_offset: usize,
}

/// Of the backward pass: for each number of the loss.
fn upstream(index: usize) -> f64 {
    0.5 + 0.25 * (index % 5) as f64
}

#[derive(Debug, Clone)]
pub struct Outcome {
    pub loss: Vec<f32>,
    pub statistics: Statistics,
    pub temperature: f64,
    /// `[N, width]`; empty where there is none.
    pub gradient: Vec<f64>,
    /// Of the forward launch.
    pub blocks: u32,
    pub forward: Report,
    pub backward: Report,
    pub caches_all_rows: bool,
}

impl<'a, T: Number> Case<'a, T> {
    /// Contiguous logits, fixed temperature 1, the published convention for it.
    pub fn new(sets: &'a TokenSets, rows: &'a Rows, width: usize, logits: &[f64]) -> Self {
        Self {
            sets,
            rows,
            logits: logits.iter().map(|&logit| T::from_f64(logit)).collect(),
            width,
            row_stride: width,
            temperature: Temperature::fixed(1.0),
            resident: false,
            convention: Convention::fixed(),
            bear: None,
            gradient: Gradient::Fused,
            limits: LIMITS,
            first_position: 0,
            gradient_offset: 0,
        }
    }

    /// The same logits with unused elements between the rows.
    pub fn spread(mut self, row_stride: usize) -> Self {
        let mut logits = vec![T::from_f64(f64::NAN); self.rows.positions() * row_stride];
        for (apart, row) in (logits.chunks_mut(row_stride)).zip(self.logits.chunks(self.width)) {
            apart[..self.width].copy_from_slice(row);
        }
        (self.logits, self.row_stride) = (logits, row_stride);
        self
    }

    pub fn dense_rows(&self) -> DenseRows {
        let loss = MaskedSoftmaxLoss::new(self.sets, self.temperature.clone()).unwrap();
        let loss = match self.bear {
            Some(bear) => loss.with_bear(bear).unwrap(),
            None => loss,
        };
        let loss = loss.with_convention(self.convention).unwrap();
        let mut dense = loss.dense_rows(self.rows).unwrap();
        for row in &mut dense.rows {
            row.position += self.first_position;
        }
        for position in &mut dense.ignored {
            *position += self.first_position;
        }
        dense
    }

    pub fn run(&self, emulator: &Emulator) -> Result<Outcome, Fault> {
        let mut memory = Memory::new();
        let logits = memory.upload("logits", &self.logits);
        self.run_on(emulator, memory, logits, pointer(logits))
    }

    /// On logits that lie in `logits` but whose position 0 would be at `address`.
    pub fn run_on(
        &self,
        emulator: &Emulator,
        memory: Memory,
        logits: Buffer<T>,
        address: DevicePtr,
    ) -> Result<Outcome, Fault> {
        let mut stream = EmulatedStream::new(emulator, memory, self.limits, u32::MAX);
        let matrix = DeviceMatrix {
            address: Some(address),
            row_stride: self.row_stride as u64,
        };
        (self.issue(&mut stream, logits, matrix)).map_err(|failure| failure.0)
    }

    fn issue(
        &self,
        stream: &mut EmulatedStream,
        logits: Buffer<T>,
        matrix: DeviceMatrix,
    ) -> Result<Outcome, Failure> {
        let plan = DensePlan::new(self.dense_rows(), T::ELEMENT, self.width, &self.limits).unwrap();
        let totals = &plan.rows().totals;
        let temperature = totals.next(&self.temperature).unwrap();
        let fused = matches!(self.gradient, Gradient::Fused | Gradient::FusedOverLogits);
        let memory = &mut stream.memory;
        let previous = memory.upload("previous", &[2.0 * self.temperature.value()]);
        let loss = memory.allocate::<f32>("loss", totals.losses());
        let statistics = memory.allocate::<f64>("statistics", Statistics::LENGTH + 1);
        let tau = memory.allocate::<f64>("temperature", 1);
        let tensors = DenseTensors {
            logits: matrix,
            sets: upload_sets(memory, self.sets),
            previous: self.resident.then_some(pointer(previous)),
        };
        let results = ForwardResults {
            loss: pointer(loss),
            statistics: pointer(statistics),
            temperature: pointer(tau),
        };
        let (gradient, to) = self.gradient_buffer(memory, logits, matrix);
        let direct = fused.then_some(to);
        // SAFETY: the emulator looks at every address.
        let saved = unsafe { plan.issue_forward(stream, &tensors, temperature, direct, &results) }?;
        stream.assert_counted()?;
        stream.free_scratch();
        if matches!(
            self.gradient,
            Gradient::Backward | Gradient::BackwardOverLogits
        ) {
            let upstream: Vec<f32> = (0..totals.losses()).map(|i| upstream(i) as f32).collect();
            let upstream = Upstream {
                loss: pointer(stream.memory.upload("upstream", &upstream)),
                temperature: pointer(tau),
            };
            // SAFETY: the emulator looks at every address.
            unsafe { plan.issue_backward(stream, &saved, &upstream, to) }?;
        }
        let blocks = stream.launches[0].blocks;
        let forward = stream.report(stream.launches[0].kernel);
        let backward = stream.report("dense_backward");
        let memory = &mut stream.memory;
        let fields = memory.read::<f64>(statistics.address(), Statistics::LENGTH)?;
        let statistics: [f64; Statistics::LENGTH] = fields.try_into().unwrap();
        Ok(Outcome {
            loss: memory.download(loss)?,
            statistics: bytemuck::cast(statistics),
            temperature: memory.download(tau)?[0],
            gradient: self.read(memory, gradient)?,
            blocks,
            forward,
            backward,
            caches_all_rows: plan.caches_all_rows(temperature, fused),
        })
    }

    fn gradient_buffer(
        &self,
        memory: &mut Memory,
        logits: Buffer<T>,
        over_logits: DeviceMatrix,
    ) -> (Option<Buffer<T>>, DeviceMatrix) {
        match self.gradient {
            Gradient::None => (None, over_logits),
            Gradient::FusedOverLogits | Gradient::BackwardOverLogits => (Some(logits), over_logits),
            Gradient::Fused | Gradient::Backward => {
                let length = self.rows.positions() * self.width;
                let buffer = match self.gradient_offset {
                    0 => memory.allocate::<T>("gradient", length),
                    before => {
                        memory.upload("gradient", &vec![T::from_f64(f64::NAN); before + length])
                    }
                };
                let before = (self.gradient_offset * size_of::<T>()) as u64;
                let to = DeviceMatrix {
                    address: Some(pointer(buffer).offset(before)),
                    row_stride: self.width as u64,
                };
                (Some(buffer), to)
            }
        }
    }

    fn read(&self, memory: &mut Memory, gradient: Option<Buffer<T>>) -> Result<Vec<f64>, Fault> {
        let Some(buffer) = gradient else {
            return Ok(Vec::new());
        };
        let over_logits = !matches!(self.gradient, Gradient::Fused | Gradient::Backward);
        let stride = if over_logits {
            self.row_stride
        } else {
            self.width
        };
        let values = memory.download(buffer)?;
        let (before, values) = values.split_at(self.gradient_offset);
        assert!(before.iter().all(|value| value.to_f64().is_nan()));
        let rows = values.chunks(stride.max(1));
        Ok(rows
            .flat_map(|row| row[..self.width].iter().map(|value| value.to_f64()))
            .collect())
    }

    pub fn expected(&self) -> Reference {
        let mut temperature = self.temperature.clone();
        if self.resident {
            let mut state = temperature.state();
            state.value *= 2.0;
            temperature.restore(state).unwrap();
        }
        let logits: Vec<f64> = (self.logits.chunks(self.row_stride.max(1)))
            .flat_map(|row| row[..self.width].iter().map(|logit| logit.to_f64()))
            .collect();
        reference::loss_with_bear(
            &logits,
            self.width,
            self.sets,
            self.rows,
            &mut temperature,
            self.convention,
            self.bear,
        )
        .unwrap()
    }

    /// The same bits in every schedule, and the f64 definition's numbers.
    pub fn assert_correct(&self, what: &str) {
        let mut outcome = None;
        same_for_every_schedule(schedules(), |emulator| {
            let found = self.run(&emulator)?;
            let mut bits: Vec<f64> = found.loss.iter().map(|&loss| loss.into()).collect();
            bits.extend(bytemuck::cast::<_, [f64; Statistics::LENGTH]>(
                found.statistics,
            ));
            bits.push(found.temperature);
            bits.extend(&found.gradient);
            outcome = Some(found);
            Ok(bits)
        })
        .unwrap_or_else(|fault| panic!("{what}, {:?}, {:?}: {fault}", T::ELEMENT, self.gradient));
        self.compare(&outcome.unwrap(), what);
    }

    fn compare(&self, found: &Outcome, what: &str) {
        let expected = self.expected();
        let what = format!("{what}, {:?}, {:?}", T::ELEMENT, self.gradient);
        let rows = self.dense_rows();

        let relative = (found.temperature - expected.temperature).abs() / expected.temperature;
        assert!(
            relative < 1e-5,
            "{what}: τ {} {}",
            found.temperature,
            expected.temperature
        );
        let of_statistics =
            |statistics: Statistics| bytemuck::cast::<_, [f64; Statistics::LENGTH]>(statistics);
        let fields = of_statistics(found.statistics)
            .into_iter()
            .zip(of_statistics(expected.statistics));
        for (field, (found, expected)) in fields.enumerate() {
            let close = (found - expected).abs() <= 1e-5 * expected.abs().max(1.0);
            assert!(
                close,
                "{what}: field {field} of the statistics is {found}, not {expected}"
            );
        }

        let mut losses = vec![0.0; rows.totals.losses()];
        if losses.len() == 1 && self.convention.reduction != candle_trie::Reduction::None {
            losses[0] = expected.loss;
        } else {
            for (row, loss) in self.rows.as_slice().iter().zip(&expected.losses) {
                losses[row.position as usize] = *loss;
            }
        }
        let found_losses: Vec<f64> = found.loss.iter().map(|&loss| loss.into()).collect();
        close(&found_losses, &losses, 1e-5, &format!("{what}: loss"));

        if self.gradient == Gradient::None {
            return;
        }
        let backward = matches!(
            self.gradient,
            Gradient::Backward | Gradient::BackwardOverLogits
        );
        let by_position = self.convention.reduction == candle_trie::Reduction::None;
        let scaled: Vec<f64> = (expected.gradient.iter().enumerate())
            .map(|(index, value)| match (backward, by_position) {
                (false, _) => *value,
                (true, true) => value * upstream(index / self.width),
                (true, false) => value * upstream(0),
            })
            .collect();
        let tolerance = (2.0 * T::STEP).max(1e-5);
        close(
            &found.gradient,
            &scaled,
            tolerance,
            &format!("{what}: gradient"),
        );
    }
}

/// Each entry by itself, to within `tolerance` of its own size; those below a thousandth of the
/// largest, and below what the narrowest type can tell from 0, to within that.
fn close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f64, |a, b| a.max(b.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let scale = expected
            .abs()
            .max(1e-3 * largest)
            .max(1e-6 / tolerance * f64::from(*expected != 0.0));
        assert!(
            (found - expected).abs() <= tolerance * scale,
            "{what}: entry {index} is {found}, should be {expected}"
        );
    }
}
