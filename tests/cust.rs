//! The loss over cust's buffers. Those tests that need a GPU are ignored unless asked for:
//! `scripts/gpu-check`.
#![cfg(feature = "cust")]

#[path = "dense/batch.rs"]
#[allow(dead_code)]
mod batch;

use batch::{
    VOCABULARY, assert_close, conventions, loss, noise, rows, rows_of, sets, temperatures,
    weighted_rows,
};
use candle_trie::cust::{Bf16, DenseLoss, DenseOutput, Executor, F16, Logit};
use candle_trie::{Error, MaskedSoftmaxLoss, Rows, Temperature, TokenSets, reference};
use cust::context::Context;
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use half::{bf16, f16};

trait Number: Logit + Default {
    const TOLERANCE: f64;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Number for f32 {
    const TOLERANCE: f64 = 1e-5;
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Number for F16 {
    const TOLERANCE: f64 = 1e-3;
    fn from_f64(value: f64) -> Self {
        Self(f16::from_f64(value))
    }
    fn to_f64(self) -> f64 {
        self.0.into()
    }
}

impl Number for Bf16 {
    const TOLERANCE: f64 = 8e-3;
    fn from_f64(value: f64) -> Self {
        Self(bf16::from_f64(value))
    }
    fn to_f64(self) -> f64 {
        self.0.into()
    }
}

#[test]
fn without_a_context_the_kernels_are_not_loaded_but_an_error_is_a_value() {
    let error = Executor::new().unwrap_err().to_string();
    let words = ["NoDevice", "NotInitialized", "InvalidContext"];
    assert!(words.iter().any(|word| error.contains(word)), "{error}");
}

#[test]
#[ignore = "needs a GPU"]
fn every_option_gives_what_the_definition_says() {
    let (_context, stream) = device();
    let executor = Executor::new().unwrap();
    for temperature in temperatures() {
        for convention in conventions() {
            for rows in [rows(), weighted_rows()] {
                let loss = loss(&sets(), &temperature, convention);
                let what = format!("{convention:?} at {temperature:?}");
                assert_defined(&executor, &stream, (&loss, &rows, VOCABULARY, &what));
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn every_size_gives_what_the_definition_says() {
    let (_context, stream) = device();
    let executor = Executor::new().unwrap();
    for (positions, width) in [(0, 9), (1, 9), (3, 1003), (40, 50_257)] {
        let every_other: Vec<_> = (0..positions as u32).step_by(2).collect();
        let every_other: Vec<_> = every_other.iter().map(|&p| (p, 0, 6)).collect();
        let rows = rows_of(positions, &every_other);
        let rows = rows.with_marks(vec![true; every_other.len()]).unwrap();
        let sets = TokenSets::whole_vocabulary(width).unwrap();
        for temperature in temperatures() {
            let loss = loss(&sets, &temperature, conventions()[0]);
            let what = format!("{positions} × {width} at {temperature:?}");
            assert_defined(&executor, &stream, (&loss, &rows, width, &what));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn what_does_not_fit_is_refused_before_any_launch() {
    let (_context, stream) = device();
    let executor = Executor::new().unwrap();
    let plain = loss(&sets(), &Temperature::fixed(1.0), conventions()[0]);
    let narrow = DenseLoss::new(&executor, plain.clone(), VOCABULARY - 1).unwrap_err();
    assert!(matches!(narrow, Error::TokenOutsideVocabulary { .. }));
    assert!(DenseLoss::new(&executor, plain.clone().checked(), VOCABULARY).is_err());

    let mut loss = DenseLoss::new(&executor, plain, VOCABULARY).unwrap();
    let short = DeviceBuffer::from_slice(&[0f32; 8 * VOCABULARY - 1]).unwrap();
    let error = loss.forward(&stream, &short, &rows()).unwrap_err();
    assert!(matches!(
        error,
        Error::LengthMismatch { what: "logits", .. }
    ));
    let logits = DeviceBuffer::from_slice(&[0f32; 8 * VOCABULARY]).unwrap();
    let mut gradient = DeviceBuffer::from_slice(&[0f32; 8 * VOCABULARY + 1]).unwrap();
    let error = loss.value_and_gradient(&stream, &logits, &rows(), &mut gradient);
    let what = "gradient";
    assert!(matches!(error, Err(Error::LengthMismatch { what: found, .. }) if found == what));
    assert!(loss.forward_at(&stream, &logits, &rows(), 0.0).is_err());
}

fn device() -> (Context, Stream) {
    let context = cust::quick_init().expect("these tests need a GPU");
    (context, Stream::new(StreamFlags::DEFAULT, None).unwrap())
}

type Case<'a> = (&'a MaskedSoftmaxLoss, &'a Rows, usize, &'a str);

fn assert_defined(executor: &Executor, stream: &Stream, case: Case) {
    assert_of::<f32>(executor, stream, case);
    assert_of::<F16>(executor, stream, case);
    assert_of::<Bf16>(executor, stream, case);
}

/// Two steps with the gradient, one without, and a pass at a given temperature.
fn assert_of<T: Number>(executor: &Executor, stream: &Stream, (loss, rows, width, what): Case) {
    let what = format!("{what}, {:?}", T::ELEMENT);
    let logits: Vec<T> = (noise(5, rows.positions() * width, 5.0).into_iter())
        .map(|logit| T::from_f64(logit))
        .collect();
    let exact: Vec<f64> = logits.iter().map(|logit| logit.to_f64()).collect();
    let (sets, convention) = (loss.sets(), loss.convention());
    let mut temperature = loss.temperature().clone();
    let defined = |temperature: &mut Temperature| {
        reference::loss(&exact, width, sets, rows, temperature, convention).unwrap()
    };

    let mut on_device = DenseLoss::new(executor, loss.clone(), width).unwrap();
    let logits = DeviceBuffer::from_slice(&logits).unwrap();
    for step in 0..2 {
        let nowhere = vec![T::from_f64(f64::NAN); logits.len()];
        let mut gradient = DeviceBuffer::from_slice(&nowhere).unwrap();
        let output = on_device.value_and_gradient(stream, &logits, rows, &mut gradient);
        let output = output.unwrap();
        let expected = defined(&mut temperature);
        let what = format!("{what}, step {step}");
        assert_close(&[total(&output)], &[expected.loss], 1e-5, &what);
        let gradient: Vec<f64> = (gradient.as_host_vec().unwrap().into_iter())
            .map(T::to_f64)
            .collect();
        assert_close(&gradient, &expected.gradient, T::TOLERANCE, &what);
        let fields = bytemuck::cast_slice(&[output.read_statistics().unwrap()]).to_vec();
        let expected = [expected.statistics];
        assert_close(&fields, bytemuck::cast_slice(&expected), 1e-5, &what);
    }
    let output = on_device.forward(stream, &logits, rows).unwrap();
    let expected = defined(&mut temperature);
    let used = [output.read_temperature().unwrap()];
    assert_close(&used, &[expected.temperature], 1e-5, &what);
    let stands = on_device.temperature().unwrap();
    assert_close(&[stands.value()], &[temperature.value()], 1e-5, &what);
    assert_eq!(stands.state().step, temperature.state().step, "{what}");

    let output = on_device.forward_at(stream, &logits, rows, 1.7).unwrap();
    let expected = defined(&mut Temperature::fixed(1.7));
    assert_close(&[total(&output)], &[expected.loss], 1e-5, &what);
}

fn total(output: &DenseOutput) -> f64 {
    output.read_loss().unwrap().into_iter().map(f64::from).sum()
}
