//! The operation over hidden states and a head, on the batches of several models: as candle's users call
//! it, its launches alone, and each kernel by itself.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_trie::cuda::Executor;
use candle_trie::launch::{LinearGradients, LinearRows};
use candle_trie::{AdaptiveStrategy, GradientTarget, MaskedSoftmaxLoss, Scope, Temperature};
use half::{bf16, f16};

use super::launches::{Inputs, Launches};
use super::number::Number;
use super::pool::Pool;
use super::table::{Line, Table};
use super::timer::Timer;
use super::work::{Counts, Work};
use crate::support::{LLAMA_3_8B, Model, SMOLLM2, Shape, head, hidden_states, kernel_models};

/// The side of the matrices whose product says how fast a device computes.
const SIDE: usize = 8192;
/// Gradients of the same kernels, of which candle adds one to zeros.
const TOLERANCE: f64 = 1e-2;

pub fn print(timer: &Timer) -> Result<()> {
    let peaks = Peaks::measure(timer)?;
    Table::print_header();
    for model in kernel_models() {
        let shape = model.batch();
        let head = head(&model, &Device::Cuda(timer.device.clone()));
        print_dtype::<bf16>(timer, &shape, &model, &head, peaks.half)?;
        // The narrowest and the widest model stand for the others.
        if [SMOLLM2, LLAMA_3_8B].contains(&model) {
            print_dtype::<f16>(timer, &shape, &model, &head, peaks.half)?;
            print_dtype::<f32>(timer, &shape, &model, &head, peaks.single)?;
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
    let hidden = Var::from_tensor(&hidden.to_dtype(T::DTYPE)?)?;
    let head = head.to_dtype(T::DTYPE)?;
    let (executor, pool) = (Executor::new(&timer.device)?, Pool::new(&timer.device)?);
    let benchmark = Benchmark {
        shape,
        counts: Counts::of(shape, &hidden),
        inputs: &Inputs {
            device: &timer.device,
            executor: &executor,
            sets: &shape.sets,
            hidden: &hidden,
            head: &head,
        },
        pool: &pool,
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
    let gradient = benchmark.print_calls(", τ given", &fixed)?;
    benchmark.print_calls(", τ adaptive", &adaptive)?;
    benchmark.print_launches::<T>(", τ given", &fixed, Some(&gradient))?;
    benchmark.print_launches::<T>(", τ adaptive", &adaptive, None)?;
    benchmark.print_head_gradient::<T>(&fixed)
}

/// A model's batch in one type.
struct Benchmark<'a> {
    shape: &'a Shape,
    counts: Counts,
    inputs: &'a Inputs<'a>,
    pool: &'a Pool,
    table: Table<'a>,
}

impl Benchmark<'_> {
    /// Through candle with a frozen head, as training loops call it: forward and backward, and value and gradient in one. Returns
    /// the hidden gradient of the first call.
    fn print_calls(&self, way: &str, temperature: &Temperature) -> Result<Tensor> {
        let &Inputs { hidden, head, .. } = self.inputs;
        let mut loss = MaskedSoftmaxLoss::new(&self.shape.sets, temperature.clone())?;
        let gradient = self.print_call(&format!("forward and backward{way}"), || {
            let output = loss.forward((hidden, head), &self.shape.rows)?;
            let mut gradients = output.loss.backward()?;
            let gradient = gradients.remove(hidden);
            gradient.ok_or_else(|| candle_core::Error::msg("hidden states without a gradient"))
        })?;
        self.print_call(&format!("value and gradient{way}"), || {
            let (_, gradient) =
                loss.value_and_gradient((hidden, head), &self.shape.rows, GradientTarget::New)?;
            Ok(gradient)
        })?;
        Ok(gradient)
    }

    fn print_call(&self, name: &str, mut step: impl FnMut() -> Result<Tensor>) -> Result<Tensor> {
        // What the first step leaves with the loss is not a step's.
        let gradient = step()?;
        let (taken, _, _) = self.pool.taken(&mut step)?;
        let output = gradient.elem_count() * gradient.dtype().size_in_bytes();
        self.table.print(&Line {
            name,
            work: self.counts.whole(),
            cold: self.table.timer.cold_seconds(|| step().map(drop))?,
            warm: self.table.timer.warm_seconds(|| step().map(drop))?,
            host: Some(self.table.timer.seconds_of_host(|| step().map(drop))?),
            taken: Some(taken.saturating_sub(output as u64)),
        });
        Ok(gradient)
    }

    /// The same launches without candle or an upload between them, together and kernel by kernel.
    fn print_launches<T: Number>(
        &self,
        way: &str,
        temperature: &Temperature,
        expected: Option<&Tensor>,
    ) -> Result<()> {
        let launches = self.launches::<T>(temperature, LinearGradients::Hidden)?;
        launches.issue()?;
        if let Some(expected) = expected {
            agree(&launches.hidden_gradient::<T>()?, expected)?;
        }
        self.print_device(&format!("launches alone{way}"), self.counts.whole(), || {
            launches.issue()
        })?;
        for (kernel, work) in [
            ("linear_forward", self.counts.forward()),
            ("linear_backward", self.counts.backward()),
        ] {
            self.print_device(&format!("{kernel}{way}"), work, || {
                launches.issue_kernel(kernel)
            })?;
        }
        let launches = self.launches::<T>(temperature, LinearGradients::Direct)?;
        let name = format!("linear_forward, value and gradient{way}");
        self.print_device(&name, self.counts.whole(), || launches.issue())
    }

    fn print_head_gradient<T: Number>(&self, temperature: &Temperature) -> Result<()> {
        let all = LinearGradients::All(&self.shape.sets);
        let launches = self.launches::<T>(temperature, all)?;
        launches.issue()?;
        let kernel = "linear_head_gradient";
        self.print_device(kernel, self.counts.head_gradient(), || {
            launches.issue_kernel(kernel)
        })
    }

    fn print_device(&self, name: &str, work: Work, issue: impl Fn() -> Result<()>) -> Result<()> {
        self.table.print(&Line {
            name,
            work,
            cold: self.table.timer.cold_seconds(&issue)?,
            warm: self.table.timer.warm_seconds(&issue)?,
            host: None,
            taken: None,
        });
        Ok(())
    }

    fn launches<T: Number>(
        &self,
        temperature: &Temperature,
        gradients: LinearGradients,
    ) -> Result<Launches<'_>> {
        let loss = MaskedSoftmaxLoss::new(&self.shape.sets, temperature.clone())?;
        let rows: LinearRows = loss.linear_rows(&self.shape.rows)?;
        let temperature = rows.totals.next(temperature)?;
        Launches::linear::<T>(self.inputs, rows, temperature, gradients)
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
