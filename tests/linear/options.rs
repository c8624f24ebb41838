use candle_core::DType;
use candle_trie::{Error, GradientTarget, Head};

use crate::batch::{Batch, Options, assert_close, every_option, every_option_with_bear, f64s};

fn all_options() -> Vec<Options> {
    [every_option(), every_option_with_bear()].concat()
}

#[test]
fn every_option_equals_the_definition_in_f64_and_f32() {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        for (index, options) in all_options().iter().enumerate() {
            check(
                options,
                dtype,
                tolerance,
                &format!("{dtype:?}, option {index}"),
            );
        }
    }
}

#[test]
fn sixteen_bit_types_equal_the_definition_within_the_rounding_of_their_gradients() {
    for (dtype, rounding) in [(DType::F16, 2f64.powi(-11)), (DType::BF16, 2f64.powi(-8))] {
        for (index, options) in all_options().iter().enumerate() {
            check(
                options,
                dtype,
                2.0 * rounding,
                &format!("{dtype:?}, option {index}"),
            );
        }
    }
}

#[test]
fn value_and_gradient_in_one_pass_equal_the_definition() {
    let tolerances = [
        (DType::F64, 1e-12),
        (DType::F32, 2e-5),
        (DType::F16, 2f64.powi(-10)),
        (DType::BF16, 2f64.powi(-7)),
    ];
    let batch = Batch::new(40, 7);
    for (dtype, tolerance) in tolerances {
        let [hidden, head, bias] = batch.tensors(dtype);
        for (index, options) in all_options().iter().enumerate() {
            let what = format!("{dtype:?}, option {index}");
            let head = match options.bias {
                true => Head::with_bias(&head, &bias),
                false => Head::from(head.as_tensor()),
            };
            let mut loss = batch.loss(options);
            let rows = batch.rows(options);
            let (output, gradient) =
                (loss.value_and_gradient((&hidden, head), &rows, GradientTarget::New)).unwrap();
            let expected = batch.expected(options);
            let scalar_tolerance = tolerance.min(2e-5);
            assert_close(&f64s(&output.loss), &expected.loss, scalar_tolerance, &what);
            assert_close(&f64s(&gradient), &expected.hidden, tolerance, &what);
            assert_eq!((gradient.dims(), gradient.dtype()), (hidden.dims(), dtype));
            assert!(
                output.loss.backward().unwrap().get(&hidden).is_none(),
                "{what}"
            );
            let stepped = output.read_temperature().unwrap();
            assert_eq!(loss.temperature().unwrap().value(), stepped, "{what}");
        }
    }
}

#[test]
fn a_gradient_of_hidden_states_goes_into_a_new_tensor_only() {
    let batch = Batch::new(40, 7);
    let [hidden, head, _] = batch.tensors(DType::F32);
    let options = &all_options()[0];
    let (mut loss, rows) = (batch.loss(options), batch.rows(options));
    let kept = hidden.zeros_like().unwrap();
    for target in [GradientTarget::Into(&kept), GradientTarget::InPlace] {
        let result = loss.value_and_gradient((&hidden, &head), &rows, target);
        assert!(matches!(result, Err(Error::Unsupported { .. })));
    }
}

fn check(options: &Options, dtype: DType, tolerance: f64, what: &str) {
    let batch = Batch::new(40, 7);
    let (found, expected) = (batch.found(options, dtype), batch.expected(options));
    // The loss and τ are computed in f32 at least, whatever the inputs' type.
    let scalar_tolerance = tolerance.min(2e-5);
    assert_close(
        &found.loss,
        &expected.loss,
        scalar_tolerance,
        &format!("{what}: loss"),
    );
    assert_close(
        &[found.temperature],
        &[expected.temperature],
        scalar_tolerance,
        what,
    );
    assert_close(
        &found.hidden,
        &expected.hidden,
        tolerance,
        &format!("{what}: hidden"),
    );
    assert_close(
        &found.head,
        &expected.head,
        tolerance,
        &format!("{what}: head"),
    );
    if options.bias {
        assert_close(
            &found.bias,
            &expected.bias,
            tolerance,
            &format!("{what}: bias"),
        );
    }
}

#[test]
fn odd_and_tiny_widths_equal_the_definition() {
    for width in [1, 2, 7, 15, 16, 17, 33] {
        for options in all_options().iter().step_by(3) {
            let batch = Batch::new(width, width as u64);
            let (found, expected) = (batch.found(options, DType::F64), batch.expected(options));
            assert_close(&found.loss, &expected.loss, 1e-12, "loss");
            assert_close(&found.hidden, &expected.hidden, 1e-12, "hidden");
            assert_close(&found.head, &expected.head, 1e-12, "head");
        }
    }
}

#[test]
fn dense_and_linear_agree_on_losses_temperatures_and_statistics() {
    for options in all_options() {
        let batch = Batch::new(24, 3);
        let [hidden, head, bias] = batch.tensors(DType::F64);
        let mut logits = hidden.matmul(&head.t().unwrap()).unwrap();
        if options.bias {
            logits = logits.broadcast_add(&bias).unwrap();
        }
        let head = match options.bias {
            true => Head::with_bias(&head, &bias),
            false => Head::from(head.as_tensor()),
        };
        let rows = batch.rows(&options);
        let (mut dense, mut linear) = (batch.loss(&options), batch.loss(&options));
        let (a, b) = (
            dense.statistics(&logits, &rows),
            linear.statistics((&hidden, head), &rows),
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(
            (a.rows(), a.tokens(), a.fan_out()),
            (b.rows(), b.tokens(), b.fan_out())
        );
        let moments = |s: &candle_trie::Statistics| [s.mean(), s.deviations(), s.target_mean()];
        assert_close(&moments(&a), &moments(&b), 1e-12, "statistics");
        let dense_evaluation = dense.evaluate(&logits, &rows).unwrap();
        let linear_evaluation = linear.evaluate((&hidden, head), &rows).unwrap();
        assert!(!linear_evaluation.loss.track_op());
        assert_close(
            &f64s(&linear_evaluation.loss),
            &f64s(&dense_evaluation.loss),
            1e-12,
            "evaluation",
        );
        for _ in 0..3 {
            let dense = dense.forward(&logits, &rows).unwrap();
            let linear = linear.forward((&hidden, head), &rows).unwrap();
            assert_close(&f64s(&dense.loss), &f64s(&linear.loss), 1e-12, "loss");
            assert_close(
                &[dense.read_temperature().unwrap()],
                &[linear.read_temperature().unwrap()],
                1e-12,
                "temperature",
            );
        }
    }
}
