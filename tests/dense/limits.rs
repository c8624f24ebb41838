//! Nothing to compute, and logits at the end of the number line.

use candle_core::{DType, Tensor, Var};
use candle_trie::{
    AdaptiveStrategy, Convention, Error, GradientTarget, MaskedSoftmaxLoss, Reduction, Rows, Scope,
    Temperature, TokenSets, reference,
};

use crate::batch::*;

/// Loss 0 and gradient 0, whichever way.
fn assert_nothing(loss: &MaskedSoftmaxLoss, logits: &Tensor, rows: &Rows, what: &str) {
    let logits = Var::from_tensor(logits).unwrap();
    let at = loss.forward_at(&logits, rows, 0.7).unwrap();
    let forward = loss.clone().forward(&logits, rows).unwrap();
    for output in [at, forward] {
        assert!(f64s(&output.loss).iter().all(|&loss| loss == 0.0), "{what}");
        if logits.elem_count() == 0 && logits.device().is_cuda() {
            continue; // candle's own operations launch nothing there, and call that an error.
        }
        let gradients = output.loss.backward().unwrap();
        let gradient = f64s(gradients.get(&logits).unwrap());
        assert!(gradient.iter().all(|&entry| entry == 0.0), "{what}");
    }
    // From the host: candle's own operations on a GPU take no tensor without elements.
    let nowhere = vec![f64::NAN; logits.elem_count()];
    let kept = tensor(&nowhere, logits.dims(), logits.dtype());
    loss.clone()
        .value_and_gradient(&logits, rows, GradientTarget::Into(&kept))
        .unwrap();
    assert!(f64s(&kept).iter().all(|&entry| entry == 0.0), "{what}");
    let over = tensor(&f64s(&logits), logits.dims(), logits.dtype());
    loss.clone()
        .value_and_gradient(&over, rows, GradientTarget::InPlace)
        .unwrap();
    assert!(f64s(&over).iter().all(|&entry| entry == 0.0), "{what}");
}

#[test]
fn a_batch_with_nothing_to_learn_gives_zeros_and_leaves_the_temperature() {
    let only_unary = rows_of(8, &[(2, 2, 3), (5, 2, 3)]);
    let weightless = rows().with_weights(vec![0.0; 6]).unwrap();
    for (temperature, bear) in each_with_bears(temperatures()) {
        for convention in conventions() {
            let loss = loss_with_bear(&sets(), &temperature, convention, bear);
            let what = format!("{convention:?} at {temperature:?}, {bear:?}");
            for (positions, rows) in [
                (0, rows_of(0, &[])),
                (8, rows_of(8, &[])),
                (8, only_unary.clone()),
            ] {
                let unmarked = vec![false; rows.len()];
                let rows = rows.with_marks(unmarked).unwrap();
                let values = noise(50, positions * VOCABULARY, 3.0);
                for dtype in DTYPES {
                    // candle takes two sequences of no position each for overlapping memory.
                    let sequences = tensor(&values, &[2, positions / 2, VOCABULARY], dtype);
                    assert_nothing(&loss, &sequences, &rows, &what);
                    let logits = tensor(&values, &[positions, VOCABULARY], dtype);
                    assert_nothing(&loss, &logits, &rows, &what);
                    let mut stepped = loss.clone();
                    stepped.forward(&logits, &rows).unwrap();
                    assert_eq!(
                        stepped.temperature().unwrap().value(),
                        temperature.value(),
                        "{what}"
                    );
                }
            }
            let logits = tensor(&noise(51, 56, 3.0), &SHAPE, DType::F32);
            assert_nothing(&loss, &logits, &weightless, &what);
        }
    }
}

#[test]
fn rows_without_statistics_leave_the_temperature_and_have_a_loss() {
    let rows = rows_of(8, &[(1, 1, 4), (7, 1, 1)]);
    let logits = tensor(&noise(52, 56, 3.0), &SHAPE, DType::F32);
    let mut loss = loss(
        &sets(),
        &strategy(Scope::Root).into(),
        Convention::adaptive(),
    );
    let output = loss.forward(&logits, &rows).unwrap();
    assert_eq!(output.read_statistics().unwrap().rows(), 0);
    assert_eq!(loss.temperature().unwrap().value(), 0.9);
    assert!(f64_of(&output.loss) > 0.0);
}

#[test]
fn unary_rows_that_statistics_are_taken_from_still_have_no_loss() {
    let root_is_unary = TokenSets::from_raw(vec![0, 1, 3], vec![3, 1, 2]).unwrap();
    let strategy = AdaptiveStrategy {
        allow_degenerate: true,
        ..strategy(Scope::Root)
    };
    let rows = rows_of(1, &[(0, 0, 3)]);
    for (convention, bear) in each_with_bears(conventions()) {
        let loss = loss_with_bear(&root_is_unary, &strategy.into(), convention, bear);
        for logit in [2.0, f64::NAN, f64::INFINITY] {
            let logits = tensor(&[0.0, 0.0, 0.0, logit], &[1, 4], DType::F32);
            assert_nothing(&loss, &logits, &rows, &format!("{convention:?}, {logit}"));
        }
    }
}

#[test]
fn a_row_without_weight_has_no_loss_whatever_its_logits_are() {
    let mut values = noise(53, 56, 3.0);
    values[5 * VOCABULARY + 1] = f64::NAN; // in the row that weighs nothing
    let logits = tensor(&values, &SHAPE, DType::F64);
    for (convention, bear) in each_with_bears(conventions()) {
        let mut loss = loss_with_bear(&sets(), &Temperature::fixed(1.0), convention, bear);
        let (output, gradient) = loss
            .value_and_gradient(&logits, &weighted_rows(), GradientTarget::New)
            .unwrap();
        assert!(f64s(&output.loss).iter().all(|loss| loss.is_finite()));
        assert!(f64s(&gradient).iter().all(|entry| entry.is_finite()));
    }
}

#[test]
fn enormous_logits_give_the_finite_values_of_the_definition() {
    let mut values = noise(54, 56, 3.0);
    for (index, value) in values.iter_mut().enumerate() {
        *value += [1e4, -1e4, 3e4][index / VOCABULARY % 3];
        if index % 5 == 0 {
            *value = -*value;
        }
    }
    for (temperature, bear) in each_with_bears(temperatures()) {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
            let logits = tensor(&values, &SHAPE, dtype);
            let convention = Convention::adaptive();
            let expected = reference::loss_with_bear(
                &f64s(&logits),
                VOCABULARY,
                &sets(),
                &rows(),
                &mut temperature.clone(),
                convention,
                bear,
            )
            .unwrap();
            let mut loss = loss_with_bear(&sets(), &temperature, convention, bear);
            let (output, gradient) = loss
                .value_and_gradient(&logits, &rows(), GradientTarget::New)
                .unwrap();
            let what = format!("{dtype:?} at {temperature:?}, {bear:?}");
            assert_close(&[f64_of(&output.loss)], &[expected.loss], tolerance, &what);
            assert_close(&f64s(&gradient), &expected.gradient, tolerance, &what);
            let tau = output.read_temperature().unwrap();
            assert_close(&[tau], &[expected.temperature], tolerance, &what);
        }
    }
}

#[test]
fn a_token_at_minus_infinity_counts_as_masked_and_leaves_the_temperature() {
    let mut values = noise(55, 56, 3.0);
    values[5] = f64::NEG_INFINITY; // of set 0, and not the target
    for dtype in DTYPES {
        let logits = tensor(&values, &SHAPE, dtype);
        for (temperature, bear) in each_with_bears(temperatures()) {
            let mut loss = loss_with_bear(&sets(), &temperature, Convention::fixed(), bear);
            let (output, gradient) = loss
                .value_and_gradient(&logits, &rows(), GradientTarget::New)
                .unwrap();
            assert!(f64_of(&output.loss).is_finite());
            assert_eq!(f64s(&gradient)[5], 0.0);
            assert!(f64s(&gradient).iter().all(|entry| entry.is_finite()));
            assert_eq!(loss.temperature().unwrap().value(), temperature.value());
        }
    }
}

#[test]
fn unchecked_a_row_that_is_not_finite_gives_nan_and_spoils_no_other() {
    let clean = noise(56, 56, 3.0);
    for dtype in DTYPES {
        for poison in [f64::NAN, f64::INFINITY] {
            for entry in [2, 5] {
                // The target of the first row, and a token beside it.
                let mut values = clean.clone();
                values[entry] = poison;
                for (temperature, bear) in each_with_bears(temperatures()) {
                    let convention = Convention::fixed();
                    let mut loss = loss_with_bear(&sets(), &temperature, convention, bear);
                    let spoilt = tensor(&values, &SHAPE, dtype);
                    let (output, gradient) = loss
                        .value_and_gradient(&spoilt, &rows(), GradientTarget::New)
                        .unwrap();
                    assert!(f64_of(&output.loss).is_nan());
                    let gradient = f64s(&gradient);
                    assert!(gradient[..VOCABULARY].iter().any(|entry| entry.is_nan()));
                    let others = &gradient[VOCABULARY..];
                    assert!(others.iter().all(|entry| entry.is_finite()));
                    assert_eq!(loss.temperature().unwrap().value(), temperature.value());
                }
            }
        }
    }
}

#[test]
fn a_target_at_minus_infinity_costs_infinitely_much() {
    let mut values = noise(57, 56, 3.0);
    values[2] = f64::NEG_INFINITY;
    let logits = tensor(&values, &SHAPE, DType::F32);
    for bear in bears() {
        let mut loss = loss_with_bear(&sets(), &Temperature::fixed(1.0), Convention::fixed(), bear);
        let (output, gradient) = loss
            .value_and_gradient(&logits, &rows(), GradientTarget::New)
            .unwrap();
        assert_eq!(f64_of(&output.loss), f64::INFINITY);
        assert!(f64s(&gradient).iter().all(|entry| entry.is_finite()));
    }
}

#[test]
fn checked_the_first_row_that_is_not_finite_is_named() {
    for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut values = noise(58, 56, 3.0);
        values[2 * VOCABULARY + 3] = poison; // of the unary row: never read
        values[3 * VOCABULARY] = poison; // of a position that does not count
        values[VOCABULARY + 2] = poison; // not in the set of the second row
        let checked = loss(&sets(), &temperatures()[1], Convention::fixed()).check_finite();
        let mut passing = checked.clone();
        let logits = tensor(&values, &SHAPE, DType::F32);
        passing.forward(&logits, &rows()).unwrap();

        values[4 * VOCABULARY + 5] = poison;
        values[7 * VOCABULARY + 1] = poison;
        let logits = tensor(&values, &SHAPE, DType::F32);
        let mut failing = checked.clone();
        let kept = logits.ones_like().unwrap();
        let refusals = [
            failing.forward(&logits, &rows()).unwrap_err(),
            failing.evaluate(&logits, &rows()).unwrap_err(),
            failing
                .value_and_gradient(&logits, &rows(), GradientTarget::New)
                .unwrap_err(),
            failing
                .value_and_gradient(&logits, &rows(), GradientTarget::Into(&kept))
                .unwrap_err(),
        ];
        for error in refusals {
            assert!(
                matches!(error, Error::NonFinite { row: 3, position: 4, token: 5, value }
                    if value == poison || (value.is_nan() && poison.is_nan())),
                "{error}"
            );
        }
        assert!(f64s(&kept).iter().all(|&entry| entry == 1.0));
        assert_eq!(
            failing.temperature().unwrap(),
            checked.temperature().unwrap()
        );
    }
}

#[test]
fn checked_mode_names_the_first_of_many_rows_on_any_number_of_threads() {
    const POSITIONS: usize = 2000;
    let sets = TokenSets::whole_vocabulary(64).unwrap();
    let rows: Vec<_> = (0..POSITIONS as u32)
        .map(|position| (position, 0, 1))
        .collect();
    let rows = rows_of(POSITIONS, &rows);
    let logits = Tensor::full(f32::NAN, (POSITIONS, 64), &device(DType::F32)).unwrap();
    let loss = loss(&sets, &Temperature::fixed(1.0), Convention::fixed()).check_finite();
    for _ in 0..20 {
        let error = loss.evaluate(&logits, &rows).unwrap_err();
        assert!(
            matches!(
                error,
                Error::NonFinite {
                    row: 0,
                    token: 0,
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn temperatures_at_the_end_of_the_number_line_give_no_nan() {
    let values = noise(59, 56, 3.0);
    for dtype in DTYPES {
        let logits = tensor(&values, &SHAPE, dtype);
        let convention = Convention {
            reduction: Reduction::Sum,
            times_temperature: true,
        };
        for bear in bears() {
            let loss = loss_with_bear(&sets(), &Temperature::fixed(1.0), convention, bear);
            for tau in [f64::from(f32::MIN_POSITIVE), 1e-3, 1e30, 2f64.powi(126)] {
                let output = loss.forward_at(&logits, &rows(), tau).unwrap();
                assert!(
                    !f64_of(&output.loss).is_nan(),
                    "{dtype:?} at {tau}, {bear:?}"
                );
            }
        }
    }
}
