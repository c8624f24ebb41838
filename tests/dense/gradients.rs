//! The gradient is the slope of the loss, whichever way it is asked for.

use candle_core::{DType, Tensor, Var};
use candle_trie::GradientTarget;
use candle_trie::Reduction;

use crate::batch::*;

/// The loss weighted by `upstream`, which is what is differentiated.
fn weighted(loss: &Tensor, upstream: &Tensor) -> Tensor {
    (loss * upstream).unwrap().sum_all().unwrap()
}

#[test]
fn autograd_gives_the_slope_at_every_reduction_temperature_and_weight() {
    const STEP: f64 = 1e-5;
    let values = noise(1, 8 * VOCABULARY, 3.0);
    for temperature in temperatures() {
        for convention in conventions() {
            for rows in [rows(), weighted_rows()] {
                let mut loss = loss(&sets(), &temperature, convention);
                let logits = Var::from_tensor(&tensor(&values, &SHAPE, DType::F64)).unwrap();
                let output = loss.forward(&logits, &rows).unwrap();
                // τ is a constant to the gradient, so the differences are taken at the τ used.
                let tau = output.read_temperature().unwrap();
                let shape = output.loss.dims();
                let upstream = tensor(&noise(2, shape.iter().product(), 1.0), shape, DType::F64);
                let gradients = weighted(&output.loss, &upstream).backward().unwrap();
                let found = f64s(gradients.get(&logits).unwrap());

                let at = |entry: usize, step: f64| {
                    let mut moved = values.clone();
                    moved[entry] += step;
                    let moved = tensor(&moved, &SHAPE, DType::F64);
                    let output = loss.forward_at(&moved, &rows, tau).unwrap();
                    f64_of(&weighted(&output.loss, &upstream))
                };
                let slope = |entry| (at(entry, STEP) - at(entry, -STEP)) / (2.0 * STEP);
                let expected: Vec<f64> = (0..values.len()).map(slope).collect();
                let what = format!("{convention:?} at {temperature:?}");
                assert_close(&found, &expected, 1e-7, &what);
                assert!(found.iter().any(|entry| entry.abs() > 1e-3), "{what}");
            }
        }
    }
}

#[test]
fn backward_twice_gives_the_same_gradient() {
    let logits = tensor(&noise(3, 8 * VOCABULARY, 3.0), &SHAPE, DType::F32);
    let logits = Var::from_tensor(&logits).unwrap();
    for temperature in temperatures() {
        let mut loss = loss(&sets(), &temperature, conventions()[0]);
        let output = loss.forward(&logits, &rows()).unwrap();
        let gradient = || f64s(output.loss.backward().unwrap().get(&logits).unwrap());
        assert_eq!(gradient(), gradient());
    }
}

#[test]
fn all_four_ways_to_a_gradient_agree_to_the_bit() {
    let values = noise(4, 8 * VOCABULARY, 3.0);
    let none = rows_of(8, &[]).with_marks(vec![]).unwrap();
    for dtype in DTYPES {
        for temperature in temperatures() {
            for convention in conventions() {
                for (rows, bear) in each_with_bears([rows(), weighted_rows(), none.clone()]) {
                    let loss = loss_with_bear(&sets(), &temperature, convention, bear);
                    let logits = Var::from_tensor(&tensor(&values, &SHAPE, dtype)).unwrap();
                    let autograd = loss.clone().forward(&logits, &rows).unwrap();
                    let gradients = autograd.loss.backward().unwrap();
                    let (fused, gradient) = loss
                        .clone()
                        .value_and_gradient(&logits, &rows, GradientTarget::New)
                        .unwrap();
                    let kept = tensor(&vec![f64::NAN; values.len()], &SHAPE, dtype);
                    let (into, returned_into) = loss
                        .clone()
                        .value_and_gradient(&logits, &rows, GradientTarget::Into(&kept))
                        .unwrap();
                    let written_over = tensor(&values, &SHAPE, dtype);
                    let (over, returned_over) = loss
                        .clone()
                        .value_and_gradient(&written_over, &rows, GradientTarget::InPlace)
                        .unwrap();

                    let expected = f64s(gradients.get(&logits).unwrap());
                    let what = format!("{dtype:?}, {convention:?} at {temperature:?}, {bear:?}");
                    assert_eq!(f64s(&gradient), expected, "{what}");
                    for same in [&kept, &returned_into, &written_over, &returned_over] {
                        assert_eq!(f64s(same), expected, "{what}");
                    }
                    assert_eq!(gradient.dtype(), dtype);
                    for other in [fused, into, over] {
                        assert_eq!(
                            other.read_bear_weight().unwrap(),
                            autograd.read_bear_weight().unwrap(),
                            "{what}"
                        );
                        assert_eq!(f64s(&other.loss), f64s(&autograd.loss), "{what}");
                        assert_eq!(other.loss.dtype(), autograd.loss.dtype());
                        assert_eq!(
                            other.read_temperature().unwrap(),
                            autograd.read_temperature().unwrap()
                        );
                        assert_eq!(
                            other.read_statistics().unwrap(),
                            autograd.read_statistics().unwrap()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn every_way_to_a_loss_steps_the_temperature_once_and_looking_does_not() {
    let logits = tensor(&noise(5, 8 * VOCABULARY, 3.0), &SHAPE, DType::F32);
    let kept = logits.zeros_like().unwrap();
    for temperature in temperatures() {
        let fresh = || loss(&sets(), &temperature, conventions()[0]);
        let (mut first, mut second, mut third) = (fresh(), fresh(), fresh());
        first.forward(&logits, &rows()).unwrap();
        second
            .value_and_gradient(&logits, &rows(), GradientTarget::New)
            .unwrap();
        third
            .value_and_gradient(&logits, &rows(), GradientTarget::Into(&kept))
            .unwrap();
        assert_eq!(first.temperature().unwrap(), second.temperature().unwrap());
        assert_eq!(first.temperature().unwrap(), third.temperature().unwrap());

        let before = first.temperature().unwrap().clone();
        first.evaluate(&logits, &rows()).unwrap();
        first.forward_at(&logits, &rows(), 2.0).unwrap();
        first.statistics(&logits, &rows()).unwrap();
        assert_eq!(first.temperature().unwrap(), &before);
        if temperature != before {
            assert_eq!(before.state().step, 1);
            assert_ne!(before.value(), temperature.value(), "the estimate moved it");
        }
    }
}

#[test]
fn evaluation_is_the_loss_as_it_stands_without_a_graph() {
    let logits = tensor(&noise(6, 8 * VOCABULARY, 3.0), &SHAPE, DType::F64);
    let logits = Var::from_tensor(&logits).unwrap();
    for (temperature, bear) in each_with_bears(temperatures()) {
        let loss = loss_with_bear(&sets(), &temperature, conventions()[0], bear);
        let evaluated = loss.evaluate(&logits, &rows()).unwrap();
        let expected = loss
            .forward_at(&logits, &rows(), temperature.value())
            .unwrap();
        assert_eq!(f64_of(&evaluated.loss), f64_of(&expected.loss));
        let gradients = evaluated.loss.backward().unwrap();
        assert!(gradients.get(&logits).is_none());
    }
}

#[test]
fn without_reduction_the_loss_has_the_leading_dimensions() {
    let values = noise(7, 8 * VOCABULARY, 3.0);
    let convention = conventions()[8];
    assert_eq!(convention.reduction, Reduction::None);
    let mut loss = loss(&sets(), &temperatures()[0], convention);
    for leading in [vec![2, 4], vec![8], vec![2, 2, 2]] {
        let logits = tensor(&values, &[&leading[..], &[VOCABULARY]].concat(), DType::F32);
        let output = loss.forward(&logits, &rows()).unwrap();
        assert_eq!(output.loss.dims(), leading);
        let losses = f64s(&output.loss);
        assert_eq!([losses[2], losses[3], losses[6]], [0.0; 3]); // one is unary, two are unlisted
        assert!(losses[0] > 0.0 && losses[7] > 0.0);
    }
    let one = tensor(&values[..VOCABULARY], &[VOCABULARY], DType::F32);
    let output = loss.forward(&one, &rows_of(1, &[(0, 0, 2)])).unwrap();
    assert!(output.loss.dims().is_empty());
}
