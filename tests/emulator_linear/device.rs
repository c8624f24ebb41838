//! Runs the linear operation in the emulator.

use candle_trie::Statistics;
use candle_trie::launch::{
    DeviceLimits, DeviceMatrix, ForwardResults, HeadBase, LinearGradients, LinearPlan, LinearRows,
    LinearSaved, LinearTensors, Upstream,
};
use candle_trie_emulator::{Emulator, Fault, Memory, Report, same_for_every_schedule};

use crate::batch::{Batch, Options, assert_close};
use crate::emulated::{EmulatedStream, Failure, Issued, LIMITS, pointer, schedules, upload_sets};
use crate::number::Number;
use crate::plan::{Item, Tables, item_counts};

/// A batch and all that it is computed with.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    pub batch: &'a Batch,
    pub options: &'a Options,
    /// Whether the temperature so far is on the device (as twice what the host believes).
    pub resident: bool,
    pub gradients: Gradients,
    /// How often gradients are made, of which the last are looked at.
    pub backward_passes: usize,
    /// What every number of the upstream gradient is multiplied by, as a trainer in f16 does.
    pub loss_scale: f64,
    /// Whether the head's gradient is wanted, or that of its bias alone.
    pub with_head_gradient: bool,
    /// The number of frozen rows of a head in two parts; `None` for a head in one part.
    pub base_rows: Option<usize>,
    /// Elements that lie unused before the first and between all rows of hidden states and head.
    pub apart: usize,
    pub limits: DeviceLimits,
    /// Of a grid whose blocks wait for each other, at most so many blocks, whatever the plan is for.
    pub most_blocks: u32,
    /// Scores that are in memory at a time, over the whole vocabulary.
    pub most_scores: usize,
}

/// What is made besides the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradients {
    None,
    /// That of the hidden states, by the forward pass.
    Direct,
    /// That of the hidden states alone.
    Hidden,
    /// And those of head and bias.
    All,
}

#[derive(Debug, Clone)]
pub struct Outcome {
    pub loss: Vec<f64>,
    pub statistics: Statistics,
    pub temperature: f64,
    /// The sum of the rows' weights under BEAR.
    pub bear_weight: f64,
    /// `[N, H]`, `[V, H]` or that of the added rows, and `[V]`; empty where there is none.
    pub gradient: Vec<f64>,
    pub head_gradient: Vec<f64>,
    pub bias_gradient: Vec<f64>,
    pub forward: Report,
    pub backward: Report,
    pub head_sums: Report,
    /// What was uploaded, and launched.
    pub tables: Tables,
    pub launches: Vec<Issued>,
}

impl Outcome {
    /// The items of the scores and of the gradient, of one forward launch.
    pub fn phases(&self) -> (&[Item], &[Item]) {
        self.tables.items.split_at(item_counts(&self.launches[0]).0)
    }
}

impl<'a> Case<'a> {
    /// Contiguous inputs, and all gradients.
    pub fn new(batch: &'a Batch, options: &'a Options) -> Self {
        Self {
            batch,
            options,
            resident: false,
            gradients: Gradients::All,
            backward_passes: 1,
            loss_scale: 1.0,
            with_head_gradient: true,
            base_rows: None,
            apart: 0,
            limits: LIMITS,
            most_blocks: u32::MAX,
            most_scores: LinearPlan::MOST_SCORES,
        }
    }

    pub fn rows(&self) -> LinearRows {
        let loss = self.batch.loss(self.options);
        loss.linear_rows(&self.batch.rows(self.options)).unwrap()
    }

    pub fn run<T: Number>(&self, emulator: &Emulator) -> Result<Outcome, Fault> {
        self.issue::<T>(emulator).map_err(|failure| failure.0)
    }

    fn issue<T: Number>(&self, emulator: &Emulator) -> Result<Outcome, Failure> {
        let mut stream =
            EmulatedStream::new(emulator, Memory::new(), self.limits, self.most_blocks);
        let (width, rows, positions) = (self.batch.width, self.rows(), self.batch.positions);
        let memory = &mut stream.memory;
        let tensors = self.upload::<T>(memory);
        let temperature = rows.totals.next(&self.options.temperature).unwrap();
        let losses = rows.totals.losses();
        let sets = self.batch.sets(self.options);
        let gradients = match self.gradients {
            Gradients::None => LinearGradients::None,
            Gradients::Direct => LinearGradients::Direct,
            Gradients::Hidden => LinearGradients::Hidden,
            Gradients::All => match self.base_rows {
                None => LinearGradients::All(&sets),
                Some(rows) => LinearGradients::AddedRows {
                    sets: &sets,
                    first_token: rows as u32,
                },
            },
        };
        let plan = LinearPlan::new(
            rows,
            T::ELEMENT,
            width,
            gradients,
            &self.limits,
            self.most_scores,
        )
        .unwrap();
        let loss = memory.allocate::<f32>("loss", losses);
        let statistics = memory.allocate::<f64>("statistics", Statistics::LENGTH + 1);
        let tau = memory.allocate::<f64>("temperature", 1);
        let direct = memory.allocate::<T>("gradient", positions * width);
        let is_direct = self.gradients == Gradients::Direct;
        let results = ForwardResults {
            loss: pointer(loss),
            statistics: pointer(statistics),
            temperature: pointer(tau),
        };
        let to = is_direct.then_some(pointer(direct));
        // SAFETY: the emulator looks at every address.
        let saved =
            unsafe { plan.issue_forward(&mut stream, &tensors, temperature, to, &results) }?;
        stream.assert_counted()?;
        stream.free_scratch();
        let mut made = Default::default();
        if is_direct {
            let values: Vec<T> = stream.memory.download(direct)?;
            made = [values.into_iter().map(T::to_f64).collect(), vec![], vec![]];
        }
        let backward = matches!(self.gradients, Gradients::Hidden | Gradients::All);
        for _ in 0..if backward { self.backward_passes } else { 0 } {
            let loss: Vec<f32> = (0..losses).map(|i| self.upstream_of(i) as f32).collect();
            let upstream = Upstream {
                loss: pointer(stream.memory.upload("upstream", &loss)),
                temperature: pointer(tau),
            };
            made = self.backward::<T>(&mut stream, &plan, &saved, &upstream)?;
            stream.free_scratch();
        }
        let [gradient, head_gradient, bias_gradient] = made;
        stream.assert_counted()?;
        let losses = stream.memory.download(loss)?;
        let behind = statistics.address() + (Statistics::LENGTH * size_of::<f64>()) as u64;
        let bear_weight = match self.options.bear {
            Some(_) => stream.memory.read::<f64>(behind, 1)?[0],
            None => 0.0,
        };
        let statistics = (stream.memory).read::<f64>(statistics.address(), Statistics::LENGTH)?;
        Ok(Outcome {
            loss: losses.into_iter().map(f64::from).collect(),
            statistics: bytemuck::cast(<[f64; Statistics::LENGTH]>::try_from(statistics).unwrap()),
            temperature: stream.memory.download(tau)?[0],
            bear_weight,
            gradient,
            head_gradient,
            bias_gradient,
            tables: Tables::new(&stream.tables),
            launches: stream.launches.clone(),
            forward: stream.report("linear_forward"),
            backward: stream.report("linear_backward"),
            head_sums: stream.report("linear_head_gradient"),
        })
    }

    /// Of the backward pass: for each number of the loss.
    pub fn upstream_of(&self, index: usize) -> f64 {
        match self.gradients {
            Gradients::Direct => 1.0,
            _ => self.loss_scale * (0.5 + 0.25 * (index % 5) as f64),
        }
    }

    /// Of hidden states, head and bias.
    fn backward<T: Number>(
        &self,
        stream: &mut EmulatedStream,
        plan: &LinearPlan,
        saved: &LinearSaved,
        upstream: &Upstream,
    ) -> Result<[Vec<f64>; 3], Failure> {
        let (width, vocabulary) = (self.batch.width, self.batch.vocabulary);
        let memory = &mut stream.memory;
        let hidden = memory.allocate::<T>("gradient", self.batch.positions * width);
        let trained = vocabulary - self.base_rows.unwrap_or(0);
        let head = memory.upload("head gradient", &vec![T::zeroed(); trained * width]);
        let bias = memory.upload("bias gradient", &vec![T::zeroed(); vocabulary]);
        let wanted = [
            self.with_head_gradient.then_some(pointer(head)),
            self.options.bias.then_some(pointer(bias)),
        ];
        // SAFETY: the emulator looks at every address.
        unsafe {
            plan.issue_hidden_gradient(stream, saved, upstream, pointer(hidden))?;
            if self.gradients == Gradients::All {
                plan.issue_head_gradient(stream, saved, upstream, wanted)?;
            }
        }
        let mut f64s = |buffer| -> Result<Vec<f64>, Fault> {
            let values: Vec<T> = stream.memory.download(buffer)?;
            Ok(values.into_iter().map(T::to_f64).collect())
        };
        Ok([f64s(hidden)?, f64s(head)?, f64s(bias)?])
    }

    fn upload<T: Number>(&self, memory: &mut Memory) -> LinearTensors {
        let batch = self.batch;
        let mut matrix = |name: &str, values: &[f64]| {
            let apart = vec![T::from_f64(f64::NAN); self.apart];
            let rows = values.chunks(batch.width).flat_map(|row| {
                (apart.iter().copied()).chain(row.iter().map(|&value| T::from_f64(value)))
            });
            let buffer = memory.upload(name, &rows.collect::<Vec<T>>());
            DeviceMatrix {
                address: Some(pointer(buffer).offset((self.apart * size_of::<T>()) as u64)),
                row_stride: (batch.width + self.apart) as u64,
            }
        };
        let hidden = matrix("hidden", &batch.hidden);
        let base_rows = self.base_rows.unwrap_or(0);
        let (base, head) = batch.head.split_at(base_rows * batch.width);
        let head = matrix("head", head);
        let base = self.base_rows.map(|rows| HeadBase {
            matrix: matrix("base", base),
            rows: rows as u32,
        });
        let bias: Vec<T> = batch.bias.iter().map(|&value| T::from_f64(value)).collect();
        let bias = pointer(memory.upload("bias", &bias));
        let previous = 2.0 * self.options.temperature.value();
        let previous = pointer(memory.upload("previous", &[previous]));
        LinearTensors {
            hidden,
            head,
            base,
            bias: self.options.bias.then_some(bias),
            sets: upload_sets(memory, &batch.sets(self.options)),
            previous: self.resident.then_some(previous),
        }
    }

    /// The same bits in every schedule, and the f64 definition's numbers.
    pub fn assert_correct<T: Number>(&self, what: &str) {
        let what = format!("{what}, {:?}, {:?}", T::ELEMENT, self.gradients);
        let mut outcome = None;
        same_for_every_schedule(schedules(), |emulator| {
            let found = self.run::<T>(&emulator)?;
            let mut bits = found.loss.clone();
            bits.extend(bytemuck::cast::<_, [f64; Statistics::LENGTH]>(
                found.statistics,
            ));
            bits.push(found.temperature);
            bits.extend(&found.gradient);
            bits.extend(&found.head_gradient);
            bits.extend(&found.bias_gradient);
            outcome = Some(found);
            Ok(bits)
        })
        .unwrap_or_else(|fault| panic!("{what}: {fault}"));
        self.compare::<T>(&outcome.unwrap(), &what);
    }

    fn compare<T: Number>(&self, found: &Outcome, what: &str) {
        let mut options = self.options.clone();
        if self.resident {
            let mut state = options.temperature.state();
            state.value *= 2.0;
            options.temperature.restore(state).unwrap();
        }
        let reference = self.batch.reference(&options);
        let expected = self.batch.expected(&options);
        assert_close(&[found.temperature], &[expected.temperature], 1e-5, what);
        if self.options.bear.is_some() {
            let rows = self.batch.rows(self.options);
            let weights = reference
                .bear_weights
                .iter()
                .zip(rows.as_slice())
                .enumerate();
            let branching = weights.filter(|(_, (_, row))| {
                self.batch.sets(self.options).get(row.set).unwrap().len() > 1
            });
            let sum: f64 = branching
                .map(|(index, (weight, _))| weight * f64::from(rows.weight(index)))
                .sum();
            assert_close(
                &[found.bear_weight],
                &[sum],
                1e-5,
                &format!("{what}: weights"),
            );
        }
        let fields = |statistics| bytemuck::cast::<_, [f64; Statistics::LENGTH]>(statistics);
        let fields = fields(found.statistics)
            .into_iter()
            .zip(fields(reference.statistics));
        for (field, (found, expected)) in fields.enumerate() {
            let close = (found - expected).abs() <= 1e-5 * expected.abs().max(1.0);
            assert!(
                close,
                "{what}: field {field} of the statistics is {found}, not {expected}"
            );
        }
        assert_close(&found.loss, &expected.loss, 2e-5, &format!("{what}: loss"));
        if self.gradients == Gradients::None {
            return;
        }
        let (vocabulary, width) = (self.batch.vocabulary, self.batch.width);
        let mut hidden = vec![0.0; self.batch.hidden.len()];
        let mut head = vec![0.0; self.batch.head.len()];
        let mut bias = vec![0.0; vocabulary];
        for (index, logit) in reference.gradient.iter().enumerate() {
            let (position, token) = (index / vocabulary, index % vocabulary);
            let by_position = self.options.convention.reduction == candle_trie::Reduction::None;
            let error = logit * self.upstream_of(if by_position { position } else { 0 });
            bias[token] += error;
            for i in 0..width {
                let (hidden_at, head_at) = (position * width + i, token * width + i);
                hidden[hidden_at] += error * self.batch.head[head_at];
                head[head_at] += error * self.batch.hidden[hidden_at];
            }
        }
        let tolerance = (2.0 * T::STEP).max(1e-5);
        let close = |found: &[f64], expected: &[f64], of: &str| {
            assert_close(
                found,
                expected,
                tolerance,
                &format!("{what}: gradient of the {of}"),
            );
        };
        close(&found.gradient, &hidden, "hidden states");
        if self.gradients != Gradients::All {
            return;
        }
        if self.with_head_gradient {
            let trained = &head[self.base_rows.unwrap_or(0) * width..];
            close(&found.head_gradient, trained, "head");
        } else {
            assert!(found.head_gradient.iter().all(|&value| value == 0.0));
        }
        if self.options.bias {
            close(&found.bias_gradient, &bias, "bias");
        }
    }
}
