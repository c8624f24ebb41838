//! The loss over logits.

use candle_trie::cust::{DenseLoss, Executor};
use candle_trie::{Error, MaskedSoftmaxLoss, Rows, Temperature, TokenSets, reference};
use cust::memory::DeviceBuffer;
use cust::stream::Stream;

use crate::dense_batch::{
    VOCABULARY, assert_close, conventions, loss, noise, rows, rows_of, sets, temperatures,
    weighted_rows,
};
use crate::number::{Bf16, F16, Number, f64s};
use crate::{device, total};

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
    assert!(DenseLoss::new(&executor, plain.clone().check_finite(), VOCABULARY).is_err());

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
    let mut temperature = loss.temperature().unwrap().clone();
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
        let gradient = f64s(&gradient);
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
