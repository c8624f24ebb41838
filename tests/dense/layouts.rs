//! Logits that lie otherwise than row after row give what a contiguous copy gives.

use candle_core::{DType, Tensor, Var};
use candle_trie::Error;
use candle_trie::GradientTarget;

use crate::batch::*;

fn loss_and_gradient(logits: &Tensor, of: &Var) -> (Vec<f64>, Vec<f64>) {
    let convention = conventions()[8];
    let mut loss = loss(&sets(), &temperatures()[2], convention);
    let output = loss.forward(logits, &rows()).unwrap();
    let gradients = output.loss.backward().unwrap();
    (f64s(&output.loss), f64s(gradients.get(of).unwrap()))
}

#[test]
fn narrowed_logits_need_no_copy() {
    for dtype in DTYPES {
        let whole = Var::from_tensor(&tensor(&noise(20, 11 * 12, 3.0), &[11, 12], dtype)).unwrap();
        // Rows 12 apart, beginning two rows and three columns in.
        let view = whole
            .narrow(0, 2, 8)
            .unwrap()
            .narrow(1, 3, VOCABULARY)
            .unwrap();
        assert!(!view.is_contiguous());
        let copy = view.contiguous().unwrap();
        assert_eq!(
            loss_and_gradient(&view, &whole),
            loss_and_gradient(&copy, &whole)
        );

        let loss = loss(&sets(), &temperatures()[2], conventions()[0]);
        let fused = |logits| {
            let (output, gradient) = loss
                .clone()
                .value_and_gradient(logits, &rows(), GradientTarget::New)
                .unwrap();
            (f64_of(&output.loss), f64s(&gradient))
        };
        assert_eq!(fused(&view), fused(&copy));
        let into = tensor(&[f64::NAN; 8 * VOCABULARY], &[8, VOCABULARY], dtype);
        let (output, _) = loss
            .clone()
            .value_and_gradient(&view, &rows(), GradientTarget::Into(&into))
            .unwrap();
        assert_eq!((f64_of(&output.loss), f64s(&into)), fused(&copy));
    }
}

#[test]
fn narrowed_logits_of_three_dimensions_need_no_copy_where_they_flatten() {
    let whole = tensor(&noise(21, 2 * 4 * 9, 3.0), &[2, 4, 9], DType::F32);
    let whole = Var::from_tensor(&whole).unwrap();
    let view = whole.narrow(2, 1, VOCABULARY).unwrap();
    let copy = view.contiguous().unwrap();
    assert_eq!(
        loss_and_gradient(&view, &whole),
        loss_and_gradient(&copy, &whole)
    );
}

#[test]
fn one_row_of_logits_may_stand_for_all() {
    let row = Var::from_tensor(&tensor(
        &noise(22, VOCABULARY, 3.0),
        &[1, VOCABULARY],
        DType::F64,
    ));
    let row = row.unwrap();
    let view = row.broadcast_as((8, VOCABULARY)).unwrap();
    let (losses, gradient) = loss_and_gradient(&view, &row);
    let (expected, expected_gradient) = loss_and_gradient(&view.contiguous().unwrap(), &row);
    assert_eq!(losses, expected);
    assert_close(&gradient, &expected_gradient, 1e-14, "a row for all");
}

#[test]
fn a_gradient_may_be_written_into_a_part_of_a_larger_buffer() {
    let logits = tensor(&noise(23, 56, 3.0), &[8, VOCABULARY], DType::F32);
    let buffer = tensor(&[7.0; 10 * VOCABULARY], &[10, VOCABULARY], DType::F32);
    let mut loss = loss(&sets(), &temperatures()[0], conventions()[0]);
    let (_, expected) = loss
        .value_and_gradient(&logits, &rows(), GradientTarget::New)
        .unwrap();
    let part = buffer.narrow(0, 1, 8).unwrap();
    loss.value_and_gradient(&logits, &rows(), GradientTarget::Into(&part))
        .unwrap();
    let written = f64s(&buffer);
    let (before, rest) = written.split_at(VOCABULARY);
    let (part, after) = rest.split_at(8 * VOCABULARY);
    assert_eq!(part, f64s(&expected));
    assert!([before, after].concat().iter().all(|&entry| entry == 7.0));
}

#[test]
fn layouts_that_would_need_a_copy_are_refused_with_their_strides() {
    let mut loss = loss(&sets(), &temperatures()[0], conventions()[0]);
    let transposed = tensor(&noise(24, 56, 3.0), &[VOCABULARY, 8], DType::F32);
    let gap_in_time = tensor(&noise(25, 70, 3.0), &[2, 5, VOCABULARY], DType::F32);
    for (logits, strides) in [
        (transposed.t().unwrap(), "[1, 8]"),
        (gap_in_time.narrow(1, 1, 4).unwrap(), "[35, 7, 1]"),
    ] {
        let refusals = [
            loss.forward(&logits, &rows()).unwrap_err(),
            loss.value_and_gradient(&logits, &rows(), GradientTarget::New)
                .unwrap_err(),
            loss.statistics(&logits, &rows()).unwrap_err(),
        ];
        for error in refusals {
            assert!(
                matches!(&error, Error::Unsupported { what: "logits", actual, .. }
                    if actual.contains(strides)),
                "{error}"
            );
        }
    }
}

#[test]
fn a_gap_between_batches_that_holds_no_position_is_no_gap() {
    let logits = tensor(&noise(26, 70, 3.0), &[2, 5, VOCABULARY], DType::F32);
    let none = logits.narrow(1, 2, 0).unwrap();
    let mut loss = loss(&sets(), &temperatures()[0], conventions()[0]);
    let output = loss.forward(&none, &rows_of(0, &[])).unwrap();
    assert_eq!(f64_of(&output.loss), 0.0);
}

#[test]
fn a_gradient_may_be_written_over_the_logits_and_over_nothing_else() {
    for dtype in DTYPES {
        let wide = tensor(&noise(26, 11 * 12, 3.0), &[11, 12], dtype);
        let narrow = |wide: &Tensor| {
            let rows = wide.narrow(0, 2, 8).unwrap();
            rows.narrow(1, 3, VOCABULARY).unwrap()
        };
        for temperature in temperatures() {
            let loss = loss(&sets(), &temperature, conventions()[0]);
            let (output, gradient) = loss
                .clone()
                .value_and_gradient(&narrow(&wide), &rows(), GradientTarget::New)
                .unwrap();
            let written = wide.copy().unwrap();
            let (over, _) = loss
                .clone()
                .value_and_gradient(&narrow(&written), &rows(), GradientTarget::InPlace)
                .unwrap();
            assert_eq!(f64s(&over.loss), f64s(&output.loss));
            assert_eq!(f64s(&narrow(&written)), f64s(&gradient));
            let (before, after) = (f64s(&wide), f64s(&written));
            for (entry, (before, after)) in before.into_iter().zip(after).enumerate() {
                let (row, column) = (entry / 12, entry % 12);
                let inside = (2..10).contains(&row) && (3..3 + VOCABULARY).contains(&column);
                assert!(inside || before == after, "{row}, {column}");
            }
        }
    }
    let row = tensor(&noise(27, VOCABULARY, 3.0), &[1, VOCABULARY], DType::F32);
    let shared = row.broadcast_as((8, VOCABULARY)).unwrap();
    let mut loss = loss(&sets(), &temperatures()[0], conventions()[0]);
    let error = loss
        .value_and_gradient(&shared, &rows(), GradientTarget::InPlace)
        .unwrap_err();
    assert!(error.to_string().contains("share memory"), "{error}");
}
