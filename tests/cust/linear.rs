//! The loss over hidden states × head.

use candle_trie::cust::{Executor, LinearGradients, LinearInput, LinearLoss, LossOutput};
use candle_trie::{Error, Rows, Scope, Statistics, Temperature};
use cust::memory::{DeviceBuffer, DeviceSlice};
use cust::stream::Stream;

use crate::batch::{Batch, Options, assert_close, every_option};
use crate::dense_batch::strategy;
use crate::number::{Bf16, F16, Number, f64s};
use crate::{device, losses};

#[test]
#[ignore = "needs a GPU"]
fn every_option_gives_what_the_definition_says() {
    let (_context, stream) = device();
    let executor = Executor::new().unwrap();
    let batch = Batch::new(24, 7);
    for (index, options) in every_option().iter().enumerate() {
        assert_defined(&executor, &stream, &batch, options, &format!("{index}"));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn every_width_gives_what_the_definition_says() {
    let (_context, stream) = device();
    let executor = Executor::new().unwrap();
    for width in [1, 33, 257] {
        let batch = Batch::new(width, 3);
        for options in every_option().iter().step_by(9) {
            let what = format!("width {width}");
            assert_defined(&executor, &stream, &batch, options, &what);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn every_step_goes_on_from_where_the_last_one_left_the_temperature() {
    let (_context, stream) = device();
    let executor = Executor::new().unwrap();
    let batch = Batch::new(24, 7);
    for scope in [Scope::Root, Scope::Branching, Scope::Marked] {
        let options = Options {
            temperature: strategy(scope).into(),
            ..every_option()[0].clone()
        };
        let stepped = batch.reference(&options).temperature;
        assert!((stepped / options.temperature.value() - 1.0).abs() > 0.1);
        assert_defined(&executor, &stream, &batch, &options, "steps");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn no_row_gives_zeros() {
    let (_context, stream) = device();
    let executor = Executor::new().unwrap();
    let mut batch = Batch::new(9, 3);
    batch.rows = Rows::from_raw(batch.positions, Vec::new()).unwrap();
    for options in every_option().iter().filter(|options| !options.weights) {
        assert_defined(&executor, &stream, &batch, options, "no row");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn no_position_gives_zeros_of_the_head() {
    let (_context, stream) = device();
    let executor = Executor::new().unwrap();
    let mut batch = Batch::new(9, 3);
    batch.positions = 0;
    batch.hidden.clear();
    batch.rows = Rows::from_raw(0, Vec::new()).unwrap();
    for options in every_option().iter().filter(|options| !options.weights) {
        assert_defined(&executor, &stream, &batch, options, "no position");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_loss_that_does_not_fit_the_head_is_refused() {
    let (_context, _stream) = device();
    let executor = Executor::new().unwrap();
    let batch = Batch::new(8, 3);
    let loss = batch.loss(&every_option()[0]);
    let last = loss.sets().max_token() as usize;
    let narrow = LinearLoss::new(&executor, loss.clone(), last, 8);
    assert!(matches!(narrow, Err(Error::TokenOutsideVocabulary { .. })));
    let checked = LinearLoss::new(&executor, loss.check_finite(), batch.vocabulary, 8);
    assert!(matches!(checked, Err(Error::Unsupported { .. })));
}

#[test]
#[ignore = "needs a GPU"]
fn what_does_not_fit_is_refused_before_any_launch() {
    let (_context, stream) = device();
    let executor = Executor::new().unwrap();
    let batch = Batch::new(8, 3);
    let options = &every_option()[0];
    let (loss, rows) = (batch.loss(options), batch.rows(options));
    let of_width = |width| LinearLoss::new(&executor, loss.clone(), batch.vocabulary, width);
    let mut on_device = of_width(8).unwrap();
    let zeros = |length: usize| DeviceBuffer::from_slice(&vec![0f32; length]).unwrap();
    let (nothing, short) = (zeros(0), zeros(5));
    let lengths = [batch.hidden.len(), batch.head.len(), batch.bias.len()];
    let [hidden, head, bias] = lengths.map(zeros);
    let input = LinearInput {
        hidden: &hidden,
        head: &head,
        bias: Some(&bias),
    };

    let short_hidden = LinearInput {
        hidden: &short,
        ..input
    };
    let short_head = LinearInput {
        head: &short,
        ..input
    };
    let short_bias = LinearInput {
        bias: Some(&short),
        ..input
    };
    let inputs = [short_hidden, short_head, short_bias];
    let names = ["hidden states", "head", "head bias"];
    for (input, name) in inputs.into_iter().zip(names) {
        refused(on_device.forward(&stream, input, &rows), name);
    }
    let few = Rows::from_raw(batch.positions - 1, Vec::new()).unwrap();
    refused(on_device.forward(&stream, input, &few), "hidden states");

    let names = [
        "gradient of the hidden states",
        "gradient of the head",
        "gradient of the head bias",
    ];
    for (wrong, name) in names.into_iter().enumerate() {
        let mut lengths = lengths;
        lengths[wrong] -= 1;
        let [mut hidden, mut head, mut bias] = lengths.map(zeros);
        let wanted = LinearGradients {
            hidden: &mut hidden,
            head: Some(&mut head),
            bias: Some(&mut bias),
        };
        let result = on_device.value_and_gradients(&stream, input, &rows, wanted);
        refused(result, name);
    }

    assert!(on_device.forward_at(&stream, input, &rows, 0.0).is_err());
    let input = LinearInput {
        hidden: &nothing,
        head: &nothing,
        bias: None,
    };
    let result = of_width(0).unwrap().forward(&stream, input, &rows);
    assert!(matches!(
        result,
        Err(Error::Unsupported {
            what: "hidden states",
            ..
        })
    ));
}

fn refused(result: Result<LossOutput, Error>, expected: &str) {
    match result {
        Err(Error::LengthMismatch { what, .. }) => assert_eq!(what, expected),
        other => panic!("{expected}: {other:?}"),
    }
}

fn assert_defined(
    executor: &Executor,
    stream: &Stream,
    batch: &Batch,
    options: &Options,
    what: &str,
) {
    assert_of::<f32>(executor, stream, batch, options, what);
    assert_of::<F16>(executor, stream, batch, options, what);
    assert_of::<Bf16>(executor, stream, batch, options, what);
}

/// Two steps with all gradients, one with that of the hidden states alone, one with none, and a pass at
/// a given temperature.
fn assert_of<T: Number>(
    executor: &Executor,
    stream: &Stream,
    batch: &Batch,
    options: &Options,
    what: &str,
) {
    let what = format!("{what}, {:?}", T::ELEMENT);
    let (vocabulary, width) = (batch.vocabulary, batch.width);
    let (loss, rows) = (batch.loss(options), batch.rows(options));
    let mut on_device = LinearLoss::new(executor, loss, vocabulary, width).unwrap();
    let [hidden, head, bias] = [&batch.hidden, &batch.head, &batch.bias].map(|values| {
        let values: Vec<T> = values.iter().copied().map(T::from_f64).collect();
        DeviceBuffer::from_slice(&values).unwrap()
    });
    let input = LinearInput {
        hidden: &hidden,
        head: &head,
        bias: options.bias.then_some(bias.as_slice()),
    };
    let mut options = options.clone();
    for step in 0..4 {
        let what = format!("{what}, step {step}");
        let nowhere = |like: &DeviceSlice<T>| {
            let nowhere = vec![T::from_f64(f64::NAN); like.len()];
            DeviceBuffer::from_slice(&nowhere).unwrap()
        };
        let mut gradients = [nowhere(&hidden), nowhere(&head), nowhere(&bias)];
        let [of_hidden, of_head, of_bias] = &mut gradients;
        let output = match step {
            3 => on_device.forward(stream, input, &rows),
            _ => {
                let wanted = LinearGradients {
                    hidden: of_hidden,
                    head: (step != 2).then_some(of_head),
                    bias: (step != 2 && options.bias).then_some(of_bias),
                };
                on_device.value_and_gradients(stream, input, &rows, wanted)
            }
        };
        let output = output.unwrap();
        let (reference, expected) = (batch.reference(&options), batch.expected(&options));
        assert_close(&losses(&output), &expected.loss, 2e-5, &what);
        let used = output.read_temperature().unwrap();
        assert_close(&[used], &[expected.temperature], 1e-5, &what);
        let fields = [output.read_statistics().unwrap(), reference.statistics];
        let [found, reference] = fields.map(bytemuck::cast::<_, [f64; Statistics::LENGTH]>);
        assert_close(&found, &reference, 1e-5, &what);
        let close = |found: &DeviceSlice<T>, expected: &[f64], of: &str| {
            let what = format!("{what}: gradient of the {of}");
            assert_close(&f64s(found), expected, T::TOLERANCE, &what);
        };
        let [of_hidden, of_head, of_bias] = &gradients;
        if step < 3 {
            close(of_hidden, &expected.hidden, "hidden states");
        }
        if step < 2 {
            close(of_head, &expected.head, "head");
            if options.bias {
                close(of_bias, &expected.bias, "bias");
            }
        }
        let steps = options.temperature.state().step;
        let statistics = batch.reference(&options).statistics;
        options.temperature.step(&statistics, steps).unwrap();
        let stands = on_device.temperature().unwrap();
        assert_close(
            &[stands.value()],
            &[options.temperature.value()],
            1e-5,
            &what,
        );
        assert_eq!(stands.state().step, options.temperature.state().step);
    }
    let given = Options {
        temperature: Temperature::fixed(1.7),
        ..options
    };
    let output = on_device.forward_at(stream, input, &rows, 1.7).unwrap();
    let expected = batch.expected(&given);
    assert_close(&losses(&output), &expected.loss, 2e-5, &what);
}
