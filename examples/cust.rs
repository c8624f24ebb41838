//! The loss and its gradient over cust's device buffers, without candle's CUDA, compared with the
//! definition.
//!
//! ```sh
//! eval "$(scripts/cuda-toolkit)"
//! cargo run -p candle-trie --features cust --example cust
//! ```

use std::error::Error;
use std::process::ExitCode;

use candle_trie::cust::{Bf16, DenseLoss, Executor, F16, Logit};
use candle_trie::{
    AdaptiveStrategy, MaskedSoftmaxLoss, Row, Rows, Scope, Temperature, TokenTrie, reference,
};
use cust::error::CudaError;
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use half::{bf16, f16};

const VOCABULARY: usize = 10;
const STEPS: usize = 3;

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
    train("f32", &executor, |logit| logit, f64::from, 1e-5)?;
    let (to, from) = (
        |logit| F16(f16::from_f32(logit)),
        |logit: F16| logit.0.into(),
    );
    train("f16", &executor, to, from, 2e-3)?;
    let (to, from) = (
        |logit| Bf16(bf16::from_f32(logit)),
        |logit: Bf16| logit.0.into(),
    );
    train("bf16", &executor, to, from, 2e-2)
}

/// A few steps down the gradient, each compared with the definition.
fn train<T: Logit + Default>(
    name: &str,
    executor: &Executor,
    to: impl Fn(f32) -> T,
    from: impl Fn(T) -> f64,
    tolerance: f64,
) -> Result<(), Box<dyn Error>> {
    // Three titles, of which 9 is the end; the rows of one response, 1 3 9.
    let trie = TokenTrie::new([(0, [1, 2, 9]), (1, [1, 3, 9]), (2, [4, 2, 9])])?;
    let after_1 = trie.child(0, 1).ok_or("1 begins a title")?;
    let row = |position, set, target| Row {
        position,
        set,
        target,
    };
    let rows = Rows::from_raw(3, vec![row(0, 0, 1), row(2, after_1, 3)])?;
    let strategy = AdaptiveStrategy {
        scope: Scope::Branching,
        eta: 0.75,
        ..AdaptiveStrategy::default()
    };
    let mut temperature = Temperature::from(strategy);
    let loss = MaskedSoftmaxLoss::new(&trie, strategy)?;
    let convention = loss.convention();

    let stream = Stream::new(StreamFlags::DEFAULT, None)?;
    let mut loss = DenseLoss::new(executor, loss, VOCABULARY)?;
    let mut logits = [0.0f32; 3 * VOCABULARY];
    for (index, logit) in logits.iter_mut().enumerate() {
        *logit = (index as f32 * 0.7).sin() * 3.0;
    }
    for step in 0..STEPS {
        let rounded = logits.map(&to);
        let on_device = DeviceBuffer::from_slice(&rounded)?;
        let mut gradient = DeviceBuffer::from_slice(&[T::default(); 3 * VOCABULARY])?;
        let output = loss.value_and_gradient(&stream, &on_device, &rows, &mut gradient)?;
        let found = output.read_loss()?[0];
        let gradient: Vec<f64> = gradient.as_host_vec()?.into_iter().map(&from).collect();

        let expected = reference::loss(
            &rounded.map(&from),
            VOCABULARY,
            trie.sets(),
            &rows,
            &mut temperature,
            convention,
        )?;
        let used = output.read_temperature()?;
        println!("{name}, step {step}: loss {found} at temperature {used:.4}");
        compare("loss", found.into(), expected.loss, 1e-5)?;
        compare("temperature", used, expected.temperature, 1e-5)?;
        for (found, expected) in gradient.iter().zip(&expected.gradient) {
            compare("gradient", *found, *expected, tolerance)?;
        }
        for (logit, gradient) in logits.iter_mut().zip(&gradient) {
            *logit -= *gradient as f32;
        }
    }
    Ok(())
}

fn compare(what: &str, found: f64, expected: f64, tolerance: f64) -> Result<(), String> {
    if (found - expected).abs() <= tolerance * expected.abs().max(1e-2) {
        return Ok(());
    }
    Err(format!("the {what} is {found} and should be {expected}"))
}

fn no_device(error: CudaError) -> String {
    format!("there is no CUDA device to run on ({error:?})")
}
