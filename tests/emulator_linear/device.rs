//! Runs the linear operation in the emulator.

use candle_trie::Statistics;
use candle_trie::launch::{
    DenseTemperature, DeviceLimits, LinearBackward, LinearBackwardBuffers, LinearChunks,
    LinearForward, LinearForwardBuffers, LinearGather, LinearHeadBuffers, LinearHeadGradient,
    LinearInputs, LinearRow, LinearRows, LinearShares, LinearStep, Product, TokenSetsView,
};
use candle_trie_emulator::{Emulator, Fault, Memory, Report, same_for_every_schedule};

use crate::batch::{Batch, Options, assert_close};
use crate::emulated::{LIMITS, SEEDS, run};
use crate::number::Number;

/// A batch and all that it is computed with.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    pub batch: &'a Batch,
    pub options: &'a Options,
    /// Whether the temperature so far is on the device (as twice what the host believes).
    pub resident: bool,
    /// Whether a frozen head has the head rows of every group.
    pub frozen: bool,
    /// Whether there is a hidden gradient.
    pub with_gradient: bool,
    /// Whether the head's gradient is wanted, or that of its bias alone.
    pub with_head_gradient: bool,
    /// Elements that lie unused before the first and between all rows of hidden states and head.
    pub apart: usize,
    pub limits: DeviceLimits,
    /// Scores that are in memory at a time, over the whole vocabulary.
    pub chunk: usize,
}

/// Of the backward pass: for each number of the loss.
fn upstream(index: usize) -> f64 {
    0.5 + 0.25 * (index % 5) as f64
}

#[derive(Debug, Clone)]
pub struct Outcome {
    pub loss: Vec<f64>,
    pub statistics: Statistics,
    pub temperature: f64,
    /// `[N, H]`, `[V, H]` and `[V]`; empty where there is none.
    pub gradient: Vec<f64>,
    pub head_gradient: Vec<f64>,
    pub bias_gradient: Vec<f64>,
    pub gather: Report,
    pub statistics_pass: Report,
    pub forward: Report,
    pub backward: Report,
    pub errors: Report,
    pub head_sums: Report,
    pub keeps_tiles: bool,
    pub keeps_sets: bool,
}

impl<'a> Case<'a> {
    /// Contiguous inputs, a hidden gradient, and all head rows gathered.
    pub fn new(batch: &'a Batch, options: &'a Options) -> Self {
        Self {
            batch,
            options,
            resident: false,
            frozen: false,
            with_gradient: true,
            with_head_gradient: true,
            apart: 0,
            limits: LIMITS,
            chunk: usize::MAX,
        }
    }

    pub fn rows(&self) -> LinearRows {
        let loss = self.batch.loss(self.options);
        let rows = self.batch.rows(self.options);
        let rows = loss.linear_rows(&rows, |_| self.frozen).unwrap();
        rows.within(self.chunk)
    }

    pub fn run<T: Number>(&self, emulator: &Emulator) -> Result<Outcome, Fault> {
        let mut memory = Memory::new();
        let (width, rows) = (self.batch.width, self.rows());
        let inputs = self.upload::<T>(&mut memory, &rows);
        let temperature = rows.next(&self.options.temperature).unwrap();
        let (wanted, limits) = (self.with_gradient, &self.limits);
        let element = T::ELEMENT;
        let shape = LinearForward::new(&rows, element, width, temperature, wanted, limits).unwrap();
        let plan = LinearChunks::new(&rows, element, width, temperature, wanted, limits).unwrap();
        let previous = 2.0 * self.options.temperature.value();
        let previous = memory.upload("previous", &[previous]).address();
        let group_hidden = memory.allocate::<T>("group hidden", rows.grouped() * width);
        let group_head = memory.allocate::<T>("group head", rows.gathered_head_rows() * width);
        let statistics = memory.allocate::<f64>("statistics", Statistics::LENGTH);
        let tau = memory.allocate::<f64>("temperature", 1);
        let loss = memory.allocate::<f32>("loss", rows.losses());
        let arrived = memory.upload("arrived", &[0u32]);
        let buffers = LinearForwardBuffers {
            group_hidden: group_hidden.address(),
            group_head: group_head.address(),
            frozen: self.frozen_rows::<T>(&mut memory, &rows),
            scores: memory.allocate::<f32>("scores", plan.scores()).address(),
            errors: memory.allocate::<T>("errors", plan.errors()).address(),
            gradient: memory
                .allocate::<f32>("unscaled", plan.gradient())
                .address(),
            loss: loss.address(),
            partials: memory
                .allocate::<f64>("partials", plan.partials())
                .address(),
            statistics: statistics.address(),
            temperature: tau.address(),
            previous: if self.resident { previous } else { 0 },
            arrived: arrived.address(),
        };
        let mut gather = Report::default();
        if let Some(plan) = LinearGather::new(&rows, T::ELEMENT, width, &self.limits).unwrap() {
            let launch = plan.launch(&inputs, buffers.group_hidden, buffers.group_head);
            gather = run(emulator, &launch, &mut memory)?;
        }
        let [mut statistics_pass, mut forward] = [Report::default(), Report::default()];
        for step in plan.forward_steps(&inputs, &buffers) {
            match step {
                LinearStep::Product(product) => multiply::<T>(&product, &mut memory)?,
                LinearStep::Launch(launch) => {
                    let statistics = launch.kernel.starts_with("linear_statistics");
                    let report = run(emulator, &launch, &mut memory)?;
                    *(if statistics {
                        &mut statistics_pass
                    } else {
                        &mut forward
                    }) = report;
                }
            }
        }
        assert_eq!(memory.download(arrived)?, [0]);
        let mut outcome = Outcome {
            loss: memory.download(loss)?.into_iter().map(f64::from).collect(),
            statistics: bytemuck::cast(
                <[f64; Statistics::LENGTH]>::try_from(memory.download(statistics)?).unwrap(),
            ),
            temperature: memory.download(tau)?[0],
            gradient: Vec::new(),
            head_gradient: Vec::new(),
            bias_gradient: Vec::new(),
            gather,
            statistics_pass,
            forward,
            backward: Report::default(),
            errors: Report::default(),
            head_sums: Report::default(),
            keeps_tiles: shape.keeps_tiles(),
            keeps_sets: shape.keeps_sets(),
        };
        if self.with_gradient {
            self.run_backward::<T>(emulator, &mut memory, &inputs, &buffers, &mut outcome)?;
            self.run_head_gradient::<T>(emulator, &mut memory, &inputs, &buffers, &mut outcome)?;
        }
        Ok(outcome)
    }

    fn run_backward<T: Number>(
        &self,
        emulator: &Emulator,
        memory: &mut Memory,
        inputs: &LinearInputs,
        forward: &LinearForwardBuffers,
        outcome: &mut Outcome,
    ) -> Result<(), Fault> {
        let (width, rows) = (self.batch.width, self.rows());
        let gradient = memory.allocate::<T>("gradient", self.batch.positions * width);
        if let Some(plan) = LinearBackward::new(&rows, T::ELEMENT, width, &self.limits).unwrap() {
            let buffers = LinearBackwardBuffers {
                gradient: gradient.address(),
                unscaled: forward.gradient,
                temperature: forward.temperature,
                upstream: upload_upstream(memory, &rows),
            };
            outcome.backward = run(
                emulator,
                &plan.launch(inputs.rows, inputs.idle, &buffers),
                memory,
            )?;
        }
        outcome.gradient = memory
            .download(gradient)?
            .into_iter()
            .map(T::to_f64)
            .collect();
        Ok(())
    }

    fn run_head_gradient<T: Number>(
        &self,
        emulator: &Emulator,
        memory: &mut Memory,
        inputs: &LinearInputs,
        forward: &LinearForwardBuffers,
        outcome: &mut Outcome,
    ) -> Result<(), Fault> {
        let (width, rows) = (self.batch.width, self.rows());
        let vocabulary = self.batch.vocabulary;
        let shares = LinearShares::new(&rows, &self.batch.sets(self.options));
        let head = memory.upload("head gradient", &vec![T::zeroed(); vocabulary * width]);
        let bias = memory.upload("bias gradient", &vec![T::zeroed(); vocabulary]);
        let plan = LinearHeadGradient::new(&rows, &shares, T::ELEMENT, width, &self.limits);
        if let Some(plan) = plan.unwrap() {
            let buffers = LinearHeadBuffers {
                shares: memory.upload("shares", &shares.shares).address(),
                tokens: memory.upload("share tokens", &shares.tokens).address(),
                starts: memory.upload("share starts", &shares.starts).address(),
                scores: forward.scores,
                scaled: memory.allocate::<f32>("scaled", plan.scaled()).address(),
                errors: (memory.allocate::<f32>("ragged errors", plan.errors())).address(),
                products: (memory.allocate::<f32>("products", plan.products())).address(),
                temperature: forward.temperature,
                upstream: upload_upstream(memory, &rows),
                head: if self.with_head_gradient {
                    head.address()
                } else {
                    0
                },
                bias: if self.options.bias { bias.address() } else { 0 },
            };
            outcome.errors = run(emulator, &plan.errors_launch(inputs, &buffers), memory)?;
            if rows.is_whole() {
                self.run_head_chunks::<T>(emulator, memory, inputs, (forward, &buffers))?;
            } else {
                for product in plan.group_products(&buffers) {
                    multiply::<f32>(&product, memory)?;
                }
            }
            outcome.head_sums = run(emulator, &plan.launch(&buffers), memory)?;
        }
        let f64s = |values: Vec<T>| values.into_iter().map(T::to_f64).collect();
        outcome.head_gradient = f64s(memory.download(head)?);
        outcome.bias_gradient = f64s(memory.download(bias)?);
        Ok(())
    }

    /// As on a device: with room of its own for what the forward pass did not keep.
    fn run_head_chunks<T: Number>(
        &self,
        emulator: &Emulator,
        memory: &mut Memory,
        inputs: &LinearInputs,
        (forward, head): (&LinearForwardBuffers, &LinearHeadBuffers),
    ) -> Result<(), Fault> {
        let (width, rows) = (self.batch.width, self.rows());
        let given = DenseTemperature::at(1.0);
        let plan = LinearChunks::new(&rows, T::ELEMENT, width, given, false, &self.limits).unwrap();
        let mut room = |name: &str, bytes: usize| memory.allocate::<u8>(name, bytes).address();
        let buffers = LinearForwardBuffers {
            group_head: 0,
            frozen: Vec::new(),
            scores: room("scores again", 4 * plan.scores()),
            errors: 0,
            gradient: 0,
            loss: 0,
            partials: room("partials again", 8 * plan.partials()),
            statistics: 0,
            previous: 0,
            ..forward.clone()
        };
        for step in plan.head_steps(inputs, &buffers, head) {
            match step {
                LinearStep::Product(product) if product.left_transposed => {
                    multiply::<f32>(&product, memory)?;
                }
                LinearStep::Product(product) => multiply::<T>(&product, memory)?,
                LinearStep::Launch(launch) => {
                    run(emulator, &launch, memory)?;
                }
            }
        }
        Ok(())
    }

    fn upload<T: Number>(&self, memory: &mut Memory, rows: &LinearRows) -> LinearInputs {
        let batch = self.batch;
        let sets = batch.sets(self.options);
        let listed = sets.as_raw();
        let mut matrix = |name: &str, values: &[f64]| {
            let apart = vec![T::from_f64(f64::NAN); self.apart];
            let rows = values.chunks(batch.width).flat_map(|row| {
                (apart.iter().copied()).chain(row.iter().map(|&value| T::from_f64(value)))
            });
            let buffer = memory.upload(name, &rows.collect::<Vec<T>>());
            buffer.address() + (self.apart * size_of::<T>()) as u64
        };
        let stride = (batch.width + self.apart) as u64;
        let (hidden, head) = (matrix("hidden", &batch.hidden), matrix("head", &batch.head));
        let bias: Vec<T> = batch.bias.iter().map(|&value| T::from_f64(value)).collect();
        let bias = memory.upload("bias", &bias).address();
        LinearInputs {
            hidden,
            hidden_stride: stride,
            head,
            head_stride: stride,
            bias: if self.options.bias { bias } else { 0 },
            rows: memory.upload::<LinearRow>("rows", &rows.rows).address(),
            idle: memory.upload("idle", &rows.idle).address(),
            gathered: memory.upload("gathered", &rows.gathered).address(),
            sets: TokenSetsView {
                offsets: listed.map_or(0, |(offsets, _)| {
                    memory.upload("offsets", offsets).address()
                }),
                tokens: listed.map_or(0, |(_, tokens)| memory.upload("tokens", tokens).address()),
                vocabulary: batch.vocabulary as u64,
            },
        }
    }

    fn frozen_rows<T: Number>(&self, memory: &mut Memory, rows: &LinearRows) -> Vec<u64> {
        if !self.frozen {
            return Vec::new();
        }
        let width = self.batch.width;
        let gathered = rows.grouped_sets().map(|set| {
            let set = self.batch.sets.get(set).unwrap();
            let values: Vec<T> = (set.iter())
                .flat_map(|token| &self.batch.head[token as usize * width..][..width])
                .map(|&value| T::from_f64(value))
                .collect();
            memory.upload("frozen", &values).address()
        });
        gathered.collect()
    }

    /// The same bits in every schedule, and the f64 definition's numbers.
    pub fn assert_correct<T: Number>(&self, what: &str) {
        let what = format!("{what}, {:?}, {:?}", T::ELEMENT, self.with_gradient);
        let mut outcome = None;
        same_for_every_schedule(SEEDS, |emulator| {
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
        if !self.with_gradient {
            return;
        }
        let (vocabulary, width) = (self.batch.vocabulary, self.batch.width);
        let mut hidden = vec![0.0; self.batch.hidden.len()];
        let mut head = vec![0.0; self.batch.head.len()];
        let mut bias = vec![0.0; vocabulary];
        for (index, logit) in reference.gradient.iter().enumerate() {
            let (position, token) = (index / vocabulary, index % vocabulary);
            let by_position = self.options.convention.reduction == candle_trie::Reduction::None;
            let error = logit * upstream(if by_position { position } else { 0 });
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
        if self.with_head_gradient {
            close(&found.head_gradient, &head, "head");
        } else {
            assert!(found.head_gradient.iter().all(|&value| value == 0.0));
        }
        if self.options.bias {
            close(&found.bias_gradient, &bias, "bias");
        }
    }
}

fn upload_upstream(memory: &mut Memory, rows: &LinearRows) -> u64 {
    let upstream: Vec<f32> = (0..rows.losses())
        .map(|index| upstream(index) as f32)
        .collect();
    memory.upload("upstream", &upstream).address()
}

/// What cuBLAS does on a device.
fn multiply<T: Number>(product: &Product, memory: &mut Memory) -> Result<(), Fault> {
    let rows = |count: u32, width: u32, address: u64, stride: u64, memory: &mut Memory| {
        let row = |index: u64| address + index * stride * size_of::<T>() as u64;
        (0..u64::from(count))
            .map(|index| {
                let values = memory.read::<T>(row(index), width as usize)?;
                Ok(values.into_iter().map(T::to_f64).collect())
            })
            .collect::<Result<Vec<Vec<f64>>, Fault>>()
    };
    let Product {
        columns,
        inner,
        left_transposed,
        right_transposed,
        ..
    } = *product;
    let either = |transposed: bool, (a, b): (u32, u32)| if transposed { (b, a) } else { (a, b) };
    let shape = either(left_transposed, (product.rows, inner));
    let left = rows(shape.0, shape.1, product.left, product.left_stride, memory)?;
    let shape = either(right_transposed, (inner, columns));
    let right = rows(
        shape.0,
        shape.1,
        product.right,
        product.right_stride,
        memory,
    )?;
    let at = |matrix: &[Vec<f64>], transposed: bool, (row, column): (usize, usize)| match transposed
    {
        true => matrix[column][row],
        false => matrix[row][column],
    };
    for index in 0..product.rows as usize {
        let mut result = vec![0.0; columns as usize];
        for k in 0..inner as usize {
            let value = at(&left, left_transposed, (index, k));
            for (column, result) in result.iter_mut().enumerate() {
                *result += value * at(&right, right_transposed, (k, column));
            }
        }
        let address = product.result + 4 * index as u64 * product.result_stride;
        let mut result: Vec<f32> = result.into_iter().map(|sum| sum as f32).collect();
        if product.accumulates {
            let held = memory.read::<f32>(address, result.len())?;
            result = result
                .iter()
                .zip(held)
                .map(|(sum, held)| sum + held)
                .collect();
        }
        memory.write(address, &result);
    }
    Ok(())
}
