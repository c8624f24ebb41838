//! The loss over slices of host memory, against the definition and to the bit against candle's tensors.

use candle_core::{DType, WithDType};
use candle_trie::host::{
    DenseForward, Element, FrozenRows, LinearForward, LinearGradients, LinearInput, Matrix,
};
use candle_trie::{Bear, Error, MaskedSoftmaxLoss, Reduction, Rows, TokenSets, TokenTrie};
use half::{bf16, f16};

use crate::batch::{Batch, Options, assert_close, every_option, every_option_with_bear};

fn all_options() -> Vec<Options> {
    [every_option(), every_option_with_bear()].concat()
}

fn narrowed<T: WithDType>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value)).collect()
}

fn widened<T: WithDType>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

/// Rows further apart than they are wide, with NaN between them.
fn spread<T: WithDType>(values: &[T], width: usize) -> (Vec<T>, usize) {
    let mut spread = Vec::new();
    for row in values.chunks(width) {
        spread.extend_from_slice(row);
        spread.extend([T::from_f64(f64::NAN); 3]);
    }
    (spread, width + 3)
}

/// The upstream gradient of the sum of the losses.
fn ones(options: &Options, batch: &Batch) -> Vec<f64> {
    match options.convention.reduction {
        Reduction::None => vec![1.0; batch.positions],
        _ => vec![1.0],
    }
}

/// Frozen rows must change nothing, whether they are those of all sets or of none.
fn check_linear<T: Element + WithDType>(dtype: DType, frozen_limit: Option<usize>) {
    let batch = Batch::new(40, 7);
    let hidden = narrowed::<T>(&batch.hidden);
    let (hidden, stride) = spread(&hidden, batch.width);
    let [head, bias] = [&batch.head, &batch.bias].map(|values| narrowed::<T>(values));
    for (index, options) in all_options().iter().enumerate() {
        let what = format!("{dtype:?}, option {index}");
        let matrix = Matrix::new(&head, batch.vocabulary, batch.width).unwrap();
        let frozen =
            frozen_limit.map(|limit| FrozenRows::new(matrix, batch.sets(options), limit).unwrap());
        let input = LinearInput {
            hidden: Matrix::with_stride(&hidden, batch.positions, batch.width, stride).unwrap(),
            head: matrix,
            bias: if options.bias { &bias } else { &[] },
            frozen: frozen.as_ref(),
        };
        let mut loss = batch.loss(options);
        let rows = batch.rows(options);
        let pass = LinearForward::new(&mut loss, input, &rows, [true, true]).unwrap();
        let nan = T::from_f64(f64::NAN);
        let mut to_hidden = vec![nan; batch.hidden.len()];
        let mut to_head = vec![nan; batch.head.len()];
        let mut to_bias = vec![nan; if options.bias { batch.vocabulary } else { 0 }];
        let gradients = LinearGradients {
            hidden: Some(&mut to_hidden),
            head: Some(&mut to_head),
            bias: Some(&mut to_bias),
        };
        pass.backward(input, &ones(options, &batch), gradients)
            .unwrap();
        let expected = batch.found(options, dtype);
        let losses: Vec<f64> = (pass.loss().iter())
            .map(|&loss| {
                if dtype == DType::F64 {
                    loss
                } else {
                    f64::from(loss as f32)
                }
            })
            .collect();
        assert_eq!(losses, expected.loss, "{what}");
        assert_eq!(pass.temperature(), expected.temperature, "{what}");
        assert_eq!(
            loss.temperature().unwrap().value(),
            expected.temperature,
            "{what}"
        );
        assert_eq!(widened(&to_hidden), expected.hidden, "{what}");
        assert_eq!(widened(&to_head), expected.head, "{what}");
        assert_eq!(widened(&to_bias), expected.bias, "{what}");
    }
}

#[test]
fn hidden_states_in_slices_give_the_bits_of_tensors_in_every_option_and_type() {
    for frozen_limit in [None, Some(0), Some(FrozenRows::DEFAULT_LIMIT)] {
        check_linear::<f64>(DType::F64, frozen_limit);
        check_linear::<f32>(DType::F32, frozen_limit);
        check_linear::<f16>(DType::F16, frozen_limit);
        check_linear::<bf16>(DType::BF16, frozen_limit);
    }
}

#[test]
fn frozen_rows_of_another_head_or_of_other_sets_are_refused() {
    let batch = Batch::new(24, 5);
    let options = &all_options()[0];
    let (mut loss, rows) = (batch.loss(options), batch.rows(options));
    let other: Vec<f64> = batch.head.iter().map(|value| value + 1.0).collect();
    let [head, other] =
        [&batch.head, &other].map(|head| Matrix::new(head, batch.vocabulary, batch.width).unwrap());
    let freeze = |head, sets| FrozenRows::new(head, sets, FrozenRows::DEFAULT_LIMIT).unwrap();
    let frozen = freeze(head, batch.sets(options));
    assert_eq!(frozen.gathered_sets(), 2);
    let one_set = TokenSets::from_raw(vec![0, 2], vec![3, 5]).unwrap();
    let of_other_sets = freeze(head, one_set);
    let wider = vec![0.0; batch.vocabulary * 25];
    let wider = Matrix::new(&wider, batch.vocabulary, 25).unwrap();
    let of_wider_head = freeze(wider, batch.sets(options));
    let fitting = LinearInput {
        hidden: Matrix::new(&batch.hidden, batch.positions, batch.width).unwrap(),
        head,
        bias: &[],
        frozen: Some(&frozen),
    };
    let changed_head = LinearInput {
        head: other,
        ..fitting
    };
    let refused = [
        (changed_head, ["has changed since", "anew"]),
        (
            LinearInput {
                frozen: Some(&of_other_sets),
                ..fitting
            },
            ["sets: 1", "tokens: 2"],
        ),
        (
            LinearInput {
                frozen: Some(&of_wider_head),
                ..fitting
            },
            ["[211, 25]", "[211, 24]"],
        ),
    ];
    for (input, parts) in refused {
        let pass = LinearForward::new(&mut loss, input, &rows, [true, false]);
        let words = pass.err().unwrap().to_string();
        assert!(parts.iter().all(|part| words.contains(part)), "{words}");
    }

    let pass = LinearForward::new(&mut loss, fitting, &rows, [true, false]).unwrap();
    let mut gradient = vec![0.0; batch.hidden.len()];
    let gradients = LinearGradients {
        hidden: Some(&mut gradient),
        head: None,
        bias: None,
    };
    let changed = pass.backward(changed_head, &[1.0], gradients);
    let words = changed.err().unwrap().to_string();
    assert!(words.contains("has changed since"), "{words}");
    let small = Matrix::new(&batch.head[..240], 10, 24).unwrap();
    let small = FrozenRows::new(small, batch.sets(options), 0);
    assert!(matches!(
        small,
        Err(Error::TokenOutsideVocabulary { vocabulary: 10, .. })
    ));
}

#[test]
fn logits_in_slices_equal_the_definition_in_every_option() {
    let batch = Batch::new(40, 7);
    for (index, options) in all_options().iter().enumerate() {
        let what = format!("option {index}");
        let (logits, stride) = spread(&batch.logits(options.bias), batch.vocabulary);
        let logits =
            Matrix::with_stride(&logits, batch.positions, batch.vocabulary, stride).unwrap();
        let mut loss = batch.loss(options);
        let pass = DenseForward::new(&mut loss, logits, &batch.rows(options)).unwrap();
        let mut gradient = vec![f64::NAN; batch.positions * batch.vocabulary];
        pass.backward(logits, &ones(options, &batch), &mut gradient)
            .unwrap();
        let reference = batch.reference(options);
        assert_close(&pass.loss(), &batch.expected(options).loss, 1e-12, &what);
        assert_close(&gradient, &reference.gradient, 1e-12, &what);
        assert_close(
            &[pass.temperature()],
            &[reference.temperature],
            1e-14,
            &what,
        );
        let again = DenseForward::at(&loss, logits, &batch.rows(options), pass.temperature());
        assert_eq!(again.unwrap().loss(), pass.loss(), "{what}");
    }
}

/// Half-precision gradients are scaled before they are rounded, so that a loss scale keeps what would be below the smallest
/// number.
#[test]
fn the_upstream_gradient_is_applied_before_rounding() {
    let batch = Batch::new(8, 3);
    let options = &all_options()[0];
    let logits = narrowed::<f16>(
        &batch
            .logits(false)
            .iter()
            .map(|z| 8.0 * z)
            .collect::<Vec<_>>(),
    );
    let logits = Matrix::new(&logits, batch.positions, batch.vocabulary).unwrap();
    let pass = DenseForward::new(&mut batch.loss(options), logits, &batch.rows(options)).unwrap();
    let gradient = |upstream: f64| {
        let mut gradient = vec![f16::ZERO; batch.positions * batch.vocabulary];
        pass.backward(logits, &[upstream], &mut gradient).unwrap();
        gradient
    };
    let lost = |gradient: Vec<f16>| gradient.iter().filter(|entry| **entry != f16::ZERO).count();
    assert!(lost(gradient(65536.0)) > lost(gradient(1.0)));
}

/// At equal scores p_y = q_B, so that a row has BEAR's weight 1 + λ/2.
#[test]
fn the_sum_of_bears_weights_is_that_of_the_rows() {
    let trie = TokenTrie::new([(0, [1, 9]), (1, [2, 9])]).unwrap();
    let rows = Rows::from_shifted(&trie, &vec![vec![2, 9], vec![1, 9]]).unwrap();
    let plain = MaskedSoftmaxLoss::new(&trie, 1.0).unwrap();
    let bear = plain.clone().with_bear(Bear::default()).unwrap();
    let zeros = [0f32; 40];
    let logits = Matrix::new(&zeros, 4, 10).unwrap();
    let input = LinearInput {
        hidden: Matrix::new(&zeros[..8], 4, 2).unwrap(),
        head: Matrix::new(&zeros[..20], 10, 2).unwrap(),
        bias: &[],
        frozen: None,
    };
    for (mut loss, expected) in [(plain, None), (bear, Some(2.0 * 1.125))] {
        let dense = DenseForward::new(&mut loss, logits, &rows).unwrap();
        let linear = LinearForward::new(&mut loss, input, &rows, [false, false]).unwrap();
        assert_eq!([dense.bear_weight(), linear.bear_weight()], [expected; 2]);
    }
}

#[test]
fn inputs_of_another_size_than_those_of_the_forward_pass_are_refused() {
    let batch = Batch::new(16, 3);
    let options = &all_options()[0];
    let (mut loss, rows) = (batch.loss(options), batch.rows(options));
    let zeros = vec![0.0; batch.vocabulary * (batch.positions + 1)];
    let input = |width| LinearInput {
        hidden: Matrix::new(&zeros[..batch.positions * width], batch.positions, width).unwrap(),
        head: Matrix::new(&zeros[..batch.vocabulary * width], batch.vocabulary, width).unwrap(),
        bias: &[],
        frozen: None,
    };
    let pass = LinearForward::new(&mut loss, input(16), &rows, [true, true]).unwrap();
    for width in [8, 24] {
        let mut gradient = vec![0.0; batch.positions * width];
        let gradients = LinearGradients {
            hidden: Some(&mut gradient),
            head: None,
            bias: None,
        };
        let refused = pass.backward(input(width), &[1.0], gradients);
        assert!(
            matches!(refused, Err(Error::LengthMismatch { expected: 16, actual, .. }) if actual == width),
            "{refused:?}"
        );
    }
    let logits = |width| Matrix::new(&zeros[..batch.positions * width], batch.positions, width);
    let vocabulary = batch.vocabulary;
    let pass = DenseForward::new(&mut loss, logits(vocabulary).unwrap(), &rows).unwrap();
    let mut gradient = vec![0.0; batch.positions * (vocabulary + 1)];
    let refused = pass.backward(logits(vocabulary + 1).unwrap(), &[1.0], &mut gradient);
    assert!(
        matches!(refused, Err(Error::LengthMismatch { expected, .. }) if expected == vocabulary),
        "{refused:?}"
    );
}

#[test]
fn arguments_that_do_not_fit_are_errors_with_numbers() {
    let batch = Batch::new(8, 3);
    let options = &all_options()[0];
    let (mut loss, rows) = (batch.loss(options), batch.rows(options));
    let input = |hidden: usize, head: usize, bias: usize| -> Result<_, Error> {
        Ok(LinearInput {
            hidden: Matrix::new(&batch.hidden[..hidden * 8], hidden, 8)?,
            head: Matrix::new(&batch.head[..head * 8], head, 8)?,
            bias: &batch.bias[..bias],
            frozen: None,
        })
    };
    let whole = input(97, 211, 0).unwrap();
    let mut refusals = Vec::new();
    for (hidden, head, bias) in [(96, 211, 0), (97, 100, 0), (97, 211, 5)] {
        let input = input(hidden, head, bias).unwrap();
        let pass = LinearForward::new(&mut loss, input, &rows, [true, true]);
        refusals.push(pass.err().unwrap().to_string());
    }
    let narrow = LinearInput {
        head: Matrix::new(&batch.head, 422, 4).unwrap(),
        ..whole
    };
    let pass = LinearForward::new(&mut loss, narrow, &rows, [true, true]);
    refusals.push(pass.err().unwrap().to_string());
    refusals.push(Matrix::new(&batch.hidden, 98, 8).err().unwrap().to_string());
    refusals.push(
        Matrix::with_stride(&batch.hidden, 97, 8, 9)
            .err()
            .unwrap()
            .to_string(),
    );

    let pass = LinearForward::new(&mut loss, whole, &rows, [true, false]).unwrap();
    let mut gradient = vec![0.0; batch.hidden.len() + 1];
    let mut backward = |upstream: &[f64], length: usize, [head, bias]: [&mut [f64]; 2]| {
        let gradients = LinearGradients {
            hidden: Some(&mut gradient[..length]),
            head: (!head.is_empty()).then_some(head),
            bias: Some(bias),
        };
        pass.backward(whole, upstream, gradients)
            .err()
            .unwrap()
            .to_string()
    };
    refusals.push(backward(&[1.0, 1.0], 776, [&mut [], &mut []]));
    refusals.push(backward(&[1.0], 777, [&mut [], &mut []]));
    refusals.push(backward(&[1.0], 776, [&mut [0.0], &mut []]));
    refusals.push(backward(&[1.0], 776, [&mut [], &mut [0.0]]));

    let expected = [
        ["97", "96"],
        ["210", "100"],
        ["211", "5"],
        ["8", "4"],
        ["784", "776"],
        ["872", "776"],
        ["1", "2"],
        ["776", "777"],
        ["made for it", "one that was not"],
        ["head bias", "beside it"],
    ];
    assert_eq!(refusals.len(), expected.len());
    for (refusal, parts) in refusals.iter().zip(expected) {
        for part in parts {
            assert!(refusal.contains(part), "{part}: {refusal}");
        }
    }
    // A pass that is refused takes no step, and the loss goes on.
    assert!(LinearForward::new(&mut loss, whole, &rows, [false, false]).is_ok());
}

#[test]
fn an_empty_batch_has_the_loss_0() {
    let batch = Batch::new(8, 3);
    let rows = candle_trie::Rows::from_raw(0, Vec::new()).unwrap();
    let mut loss = batch.loss(&all_options()[0]);
    let logits = Matrix::<f32>::new(&[], 0, 211).unwrap();
    let pass = DenseForward::new(&mut loss, logits, &rows).unwrap();
    assert_eq!(pass.loss(), [0.0]);
    pass.backward(logits, &[1.0], &mut []).unwrap();
}
