//! The operation over hidden states and a head, on the benchmark's batch at the widths of several
//! models and under their tokenizers: as candle's users call it, its launches alone, and each kernel by
//! itself.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_trie::cuda::Executor;
use candle_trie::launch::LinearRows;
use candle_trie::{AdaptiveStrategy, FrozenHead, Head, MaskedSoftmaxLoss, Scope, Temperature};
use half::{bf16, f16};

use super::launches::{Launches, Part};
use super::number::Number;
use super::pool::Pool;
use super::table::{Line, Table};
use super::timer::Timer;
use super::work::{Counts, Work};
use crate::support::{LLAMA_3_8B, MODELS, Model, SMOLLM2, Shape, head, hidden_states};

/// The side of the matrices whose product says how fast a device computes.
const SIDE: usize = 8192;
/// The sets that a [`FrozenHead`] keeps the head rows of have so many tokens.
const FROZEN_TOKENS: usize = 32;
/// Gradients of the same kernels, of which candle adds one to zeros.
const TOLERANCE: f64 = 1e-2;

pub fn print(timer: &Timer) -> Result<()> {
    let peaks = Peaks::measure(timer)?;
    Table::print_header();
    for model in MODELS.iter().chain([&LLAMA_3_8B]) {
        let shape = model.books();
        let head = head(model, &Device::Cuda(timer.device.clone()));
        print_dtype::<bf16>(timer, &shape, model, &head, peaks.half)?;
        // The narrowest and the widest model stand for the others.
        if [SMOLLM2.hidden, LLAMA_3_8B.hidden].contains(&model.hidden) {
            print_dtype::<f16>(timer, &shape, model, &head, peaks.half)?;
            print_dtype::<f32>(timer, &shape, model, &head, peaks.single)?;
        }
    }
    Ok(())
}

/// Operations a second of cuBLAS.
struct Peaks {
    half: f64,
    single: f64,
}

impl Peaks {
    fn measure(timer: &Timer) -> Result<Self> {
        let device = Device::Cuda(timer.device.clone());
        let square = |dtype| Tensor::rand(-1f32, 1f32, (SIDE, SIDE), &device)?.to_dtype(dtype);
        let rate = |dtype| -> Result<f64> {
            let (left, right) = (square(dtype)?, square(dtype)?);
            let seconds = timer.cold_seconds(|| left.matmul(&right).map(drop))?;
            Ok(2.0 * (SIDE as f64).powi(3) / seconds)
        };
        let peaks = Self {
            half: rate(DType::BF16)?,
            single: rate(DType::F32)?,
        };
        println!(
            "\na product of matrices of side {SIDE}: {:.0} TFLOP/s in bf16, {:.0} in f32",
            peaks.half / 1e12,
            peaks.single / 1e12
        );
        Ok(peaks)
    }
}

fn print_dtype<T: Number>(
    timer: &Timer,
    shape: &Shape,
    model: &Model,
    head: &Tensor,
    peak: f64,
) -> Result<()> {
    let device = Device::Cuda(timer.device.clone());
    let hidden = hidden_states(shape.rows.positions(), model.hidden, &device);
    let benchmark = Benchmark {
        shape,
        hidden: Var::from_tensor(&hidden.to_dtype(T::DTYPE)?)?,
        head: head.to_dtype(T::DTYPE)?,
        executor: Executor::new(&timer.device)?,
        pool: Pool::new(&timer.device)?,
        table: Table {
            timer,
            name: format!("{} {}", model.name, T::NAME),
            peak,
        },
    };
    let fixed = Temperature::fixed(1.0);
    let adaptive = Temperature::from(AdaptiveStrategy {
        scope: Scope::Branching,
        ..AdaptiveStrategy::default()
    });
    let (_, taken, frozen) =
        (benchmark.pool).taken(|| Ok(FrozenHead::new(&benchmark.head, &shape.sets)?))?;
    benchmark.table.print_taken("frozen head", taken);
    let (frozen, whole) = (Head::from(&frozen), Head::from(&benchmark.head));
    let gradient = benchmark.print_calls("frozen head, τ given", &fixed, frozen)?;
    benchmark.print_calls("frozen head, τ adaptive", &adaptive, frozen)?;
    benchmark.print_calls("head as it is, τ given", &fixed, whole)?;
    benchmark.print_launches::<T>(&fixed, &adaptive, &gradient)
}

/// A model's batch in one type.
struct Benchmark<'a> {
    shape: &'a Shape,
    hidden: Var,
    head: Tensor,
    executor: Executor,
    pool: Pool,
    table: Table<'a>,
}

impl Benchmark<'_> {
    /// Forward and backward through candle, as a training loop calls it. Returns the hidden gradient of
    /// the first call.
    fn print_calls(&self, way: &str, temperature: &Temperature, head: Head) -> Result<Tensor> {
        let mut loss = MaskedSoftmaxLoss::new(&self.shape.sets, temperature.clone())?;
        let mut step = || {
            let output = loss.forward_linear(&self.hidden, head, &self.shape.rows)?;
            let mut gradients = output.loss.backward()?;
            let gradient = gradients.remove(&self.hidden);
            gradient.ok_or_else(|| candle_core::Error::msg("hidden states without a gradient"))
        };
        // What the first step leaves with the loss is not a step's.
        let gradient = step()?;
        let (taken, _, _) = self.pool.taken(&mut step)?;
        let output = gradient.elem_count() * gradient.dtype().size_in_bytes();
        let counts = self.counts(&self.rows(temperature, true)?);
        self.table.print(&Line {
            name: &format!("forward and backward, {way}"),
            work: counts.whole(),
            cold: self.table.timer.cold_seconds(|| step().map(drop))?,
            warm: self.table.timer.warm_seconds(|| step().map(drop))?,
            host: Some(self.table.timer.seconds_of_host(|| step().map(drop))?),
            taken: Some(taken.saturating_sub(output as u64)),
        });
        Ok(gradient)
    }

    /// The same launches without candle between them, and each by itself.
    fn print_launches<T: Number>(
        &self,
        fixed: &Temperature,
        adaptive: &Temperature,
        expected: &Tensor,
    ) -> Result<()> {
        let rows = self.rows(fixed, true)?;
        let launches = self.launches::<T>(&rows, fixed, true)?;
        launches.issue_all()?;
        agree(&launches.gradient()?, expected)?;
        self.print_all("launches alone, τ given", &launches, &rows)?;
        let adapting = self.rows(adaptive, true)?;
        let adapting_launches = self.launches::<T>(&adapting, adaptive, true)?;
        self.print_all("launches alone, τ adaptive", &adapting_launches, &adapting)?;
        for part in Part::ALL {
            match part {
                Part::Statistics => self.print_part(part, "", &adapting_launches, &adapting)?,
                _ => self.print_part(part, "", &launches, &rows)?,
            }
        }
        let rows = self.rows(fixed, false)?;
        let launches = self.launches::<T>(&rows, fixed, false)?;
        launches.issue_all()?;
        self.print_part(Part::Gather, ", head as it is", &launches, &rows)
    }

    fn print_all<T: Number>(
        &self,
        name: &str,
        launches: &Launches<T>,
        rows: &LinearRows,
    ) -> Result<()> {
        let taken = Some(launches.bytes() as u64);
        let work = self.counts(rows).whole();
        self.print_device(name, work, taken, || launches.issue_all())
    }

    fn print_part<T: Number>(
        &self,
        part: Part,
        way: &str,
        launches: &Launches<T>,
        rows: &LinearRows,
    ) -> Result<()> {
        let name = format!("{}{way}", part.name());
        let work = self.counts(rows).of_part(part);
        self.print_device(&name, work, None, || launches.issue(part))
    }

    fn print_device(
        &self,
        name: &str,
        work: Work,
        taken: Option<u64>,
        issue: impl Fn() -> Result<()>,
    ) -> Result<()> {
        self.table.print(&Line {
            name,
            work,
            cold: self.table.timer.cold_seconds(&issue)?,
            warm: self.table.timer.warm_seconds(&issue)?,
            host: None,
            taken,
        });
        Ok(())
    }

    fn rows(&self, temperature: &Temperature, is_frozen: bool) -> Result<LinearRows> {
        let loss = MaskedSoftmaxLoss::new(&self.shape.sets, temperature.clone())?;
        let is_frozen = |set| is_frozen && self.shape.set_size(set) >= FROZEN_TOKENS;
        Ok(loss.linear_rows(&self.shape.rows, is_frozen)?)
    }

    fn counts(&self, rows: &LinearRows) -> Counts {
        Counts::of(self.shape, rows, &self.hidden)
    }

    /// Launches over `rows`, with the head rows of the sets that [`Self::rows`] calls frozen.
    fn launches<'a, T: Number>(
        &'a self,
        rows: &'a LinearRows,
        temperature: &Temperature,
        is_frozen: bool,
    ) -> Result<Launches<'a, T>> {
        let frozen = (rows.grouped_sets()).map(|set| {
            if !is_frozen || self.shape.set_size(set) < FROZEN_TOKENS {
                return Ok(None);
            }
            let tokens: Vec<u32> = (self.shape.sets.get(set).iter())
                .flat_map(|set| set.iter())
                .collect();
            let tokens = Tensor::new(tokens, self.head.device())?;
            self.head.index_select(&tokens, 0).map(Some)
        });
        let frozen: Vec<_> = frozen.collect::<Result<_>>()?;
        Launches::new(
            &self.table.timer.device,
            &self.executor,
            (rows, &self.shape.sets),
            rows.next(temperature)?,
            (&self.hidden, &self.head),
            frozen,
        )
    }
}

/// What is measured must be the same thing.
fn agree<T: Number>(found: &[T], expected: &Tensor) -> Result<()> {
    let expected: Vec<f32> = expected.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
    let largest =
        (expected.iter()).fold(0.0, |largest: f64, value| largest.max(value.abs().into()));
    let apart = (found.iter().zip(&expected))
        .map(|(found, &expected)| (found.to_f64() - f64::from(expected)).abs())
        .fold(0.0, f64::max);
    if found.len() == expected.len() && apart <= TOLERANCE * largest && largest > 0.0 {
        return Ok(());
    }
    candle_core::bail!(
        "the launches give another gradient than the loss: {apart} apart of {largest}"
    )
}
