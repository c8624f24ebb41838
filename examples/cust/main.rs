//! The losses and their gradients over cust's device buffers, without candle's CUDA, compared with the
//! definition.
//!
//! ```sh
//! eval "$(scripts/cuda-toolkit)"
//! cargo run -p candle-trie --features cust --example cust
//! ```

mod dense;
mod linear;

use std::error::Error;
use std::process::ExitCode;

use candle_trie::cust::{Bf16, Executor, F16, Logit};
use candle_trie::{
    AdaptiveStrategy, MaskedSoftmaxLoss, Row, Rows, Scope, Temperature, TokenTrie, reference,
};
use cust::error::CudaError;
use half::{bf16, f16};

const POSITIONS: usize = 3;
const VOCABULARY: usize = 10;
const STEPS: usize = 3;

/// A type of the device, and how near to the definition its gradients come.
struct Kind<T> {
    name: &'static str,
    to: fn(f32) -> T,
    from: fn(T) -> f64,
    tolerance: f64,
}

/// What is trained on: the rows of one response.
struct Task {
    loss: MaskedSoftmaxLoss,
    rows: Rows,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cust: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let _context = cust::quick_init().map_err(no_device)?;
    let device = cust::device::Device::get_device(0).and_then(|device| device.name())?;
    let executor = Executor::new()?;
    println!("{device}");
    train(
        &executor,
        &Kind {
            name: "f32",
            to: |value| value,
            from: f64::from,
            tolerance: 1e-5,
        },
    )?;
    train(
        &executor,
        &Kind {
            name: "f16",
            to: |value| F16(f16::from_f32(value)),
            from: |value| value.0.into(),
            tolerance: 2e-3,
        },
    )?;
    train(
        &executor,
        &Kind {
            name: "bf16",
            to: |value| Bf16(bf16::from_f32(value)),
            from: |value| value.0.into(),
            tolerance: 2e-2,
        },
    )
}

/// A few steps down the gradient of the logits, and of the hidden states.
fn train<T: Logit + Default>(executor: &Executor, kind: &Kind<T>) -> Result<(), Box<dyn Error>> {
    let task = Task::new()?;
    dense::train(executor, kind, &task)?;
    linear::train(executor, kind, &task)
}

impl Task {
    /// Three titles, of which 9 is the end, and the response 1 3 9.
    fn new() -> candle_trie::Result<Self> {
        let trie = TokenTrie::new([(0, [1, 2, 9]), (1, [1, 3, 9]), (2, [4, 2, 9])])?;
        let after_1 = trie.child(0, 1).unwrap_or_default(); // 1 begins two titles
        let row = |position, set, target| Row {
            position,
            set,
            target,
        };
        let strategy = AdaptiveStrategy {
            scope: Scope::Branching,
            eta: 0.75,
            ..AdaptiveStrategy::default()
        };
        Ok(Self {
            loss: MaskedSoftmaxLoss::new(&trie, strategy)?,
            rows: Rows::from_raw(POSITIONS, vec![row(0, 0, 1), row(2, after_1, 3)])?,
        })
    }

    /// The definition, which steps the temperature too.
    fn defined(
        &self,
        logits: &[f64],
        temperature: &mut Temperature,
    ) -> candle_trie::Result<reference::Reference> {
        let (sets, convention) = (self.loss.sets(), self.loss.convention());
        reference::loss(
            logits,
            VOCABULARY,
            sets,
            &self.rows,
            temperature,
            convention,
        )
    }
}

/// Numbers to begin with.
fn waves(count: usize) -> Vec<f32> {
    (0..count)
        .map(|index| (index as f32 * 0.7).sin() * 3.0)
        .collect()
}

fn compare(what: &str, found: &[f64], expected: &[f64], tolerance: f64) -> Result<(), String> {
    for (found, expected) in found.iter().zip(expected) {
        if (found - expected).abs() > tolerance * expected.abs().max(1e-2) {
            return Err(format!("the {what} is {found} and should be {expected}"));
        }
    }
    Ok(())
}

fn no_device(error: CudaError) -> String {
    format!("there is no CUDA device to run on ({error:?})")
}
