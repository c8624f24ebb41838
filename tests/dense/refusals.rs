//! Errors for inputs that do not fit: the variant, and the numbers in it.

use candle_core::{DType, Tensor};
use candle_trie::{
    Convention, Error, GradientTarget, LossOutput, MaskedSoftmaxLoss, Reduction, Rows, Scope,
    Temperature, TokenSets, TokenTrie, reference,
};

use crate::batch::*;

pub fn logits() -> Tensor {
    tensor(&noise(60, 56, 3.0), &SHAPE, DType::F32)
}

/// Returns the error of every way to call the loss, which must be the same one and must not change the temperature.
pub fn refused(loss: &MaskedSoftmaxLoss, logits: &Tensor, rows: &Rows) -> Error {
    let mut calls: Vec<Result<LossOutput, Error>> = Vec::new();
    let mut called = loss.clone();
    calls.push(called.forward(logits, rows));
    let kept = logits.zeros_like().unwrap();
    for target in [GradientTarget::New, GradientTarget::Into(&kept)] {
        let result = called.value_and_gradient(logits, rows, target);
        calls.push(result.map(|(output, _)| output));
    }
    assert_eq!(called.temperature().unwrap(), loss.temperature().unwrap());
    let errors: Vec<Error> = calls.into_iter().map(|call| call.unwrap_err()).collect();
    let words: Vec<String> = errors.iter().map(Error::to_string).collect();
    assert!(words.iter().all(|other| other == &words[0]), "{words:?}");
    errors.into_iter().next().unwrap()
}

pub fn fixed() -> MaskedSoftmaxLoss {
    loss(&sets(), &Temperature::fixed(1.0), Convention::fixed())
}

#[test]
fn rows_made_for_other_positions() {
    let error = refused(&fixed(), &logits(), &rows_of(9, &[(0, 0, 2)]));
    assert!(
        matches!(&error, Error::PositionMismatch { rows: 9, positions: 8, shape }
            if shape == &SHAPE),
        "{error}"
    );
    let scalar = tensor(&[1.0], &[], DType::F32);
    assert!(fixed().forward(&scalar, &rows_of(0, &[])).is_err());
}

/// Two catalogues, of which the second has more items: the node after token 1 has another number there.
fn two_tries() -> [TokenTrie; 2] {
    let items = [[1, 5], [1, 6], [0, 4], [0, 5], [0, 6]];
    [2, 5].map(|count| TokenTrie::new((0..).zip(items).take(count)).unwrap())
}

#[test]
fn rows_of_another_trie() {
    let [few, many] = two_tries();
    let labels = vec![vec![-100, 1, 5], vec![-100; 3]];
    let rows = |trie: &TokenTrie| Rows::from_unshifted(trie, &labels).unwrap();
    let logits = logits().narrow(1, 0, 3).unwrap().contiguous().unwrap();
    let loss = |sets: TokenSets| {
        let loss = MaskedSoftmaxLoss::new(sets, Temperature::fixed(1.0)).unwrap();
        loss.with_reduction(Reduction::Sum).unwrap()
    };
    let of_many = loss(many.sets().clone());

    // The targets are among the tokens of the wrong sets too.
    let unnoticed = Rows::from_raw(6, rows(&few).as_slice().to_vec()).unwrap();
    let zeros = logits.zeros_like().unwrap();
    let value = |rows: &Rows| f64_of(&of_many.forward_at(&zeros, rows, 1.0).unwrap().loss);
    assert_close(&[value(&unnoticed)], &[6f64.ln()], 1e-6, "wrong sets");
    assert_close(&[value(&rows(&many))], &[4f64.ln()], 1e-6, "right sets");

    let error = refused(&of_many, &logits, &rows(&few));
    let words = error.to_string();
    let numbers = ["sets: 8, tokens: 7", "sets: 4, tokens: 3"];
    assert!(
        matches!(&error, Error::Unsupported { what: "rows", .. })
            && numbers.iter().all(|numbers| words.contains(numbers)),
        "{words}"
    );
    let (hidden, head) = (
        logits.clone(),
        Tensor::zeros((7, 7), DType::F32, logits.device()),
    );
    let head = head.unwrap();
    let mut temperature = Temperature::fixed(1.0);
    let values = f64s(&logits);
    let refusals = [
        of_many.statistics(&logits, &rows(&few)).err(),
        of_many.evaluate(&logits, &rows(&few)).err(),
        (of_many.clone())
            .forward((&hidden, &head), &rows(&few))
            .err(),
        of_many.dense_rows(&rows(&few)).err(),
        reference::loss(
            &values,
            7,
            many.sets(),
            &rows(&few),
            &mut temperature,
            of_many.convention(),
        )
        .err(),
    ];
    for error in refusals {
        assert_eq!(error.unwrap().to_string(), words);
    }

    // An equal trie is no other, whoever has made it; and over the whole vocabulary there is one set alone.
    let again = TokenTrie::new((0..).zip([[0, 4], [1, 5], [0, 5], [1, 6], [0, 6]])).unwrap();
    assert_ne!(again, many, "as items have other numbers");
    assert_eq!(value(&rows(&again)), value(&rows(&many)));
    let whole = loss(TokenSets::whole_vocabulary(7).unwrap());
    whole.evaluate(&logits, &rows(&few)).unwrap();
}

#[test]
fn tokens_outside_the_vocabulary() {
    let narrow = logits().narrow(2, 0, 6).unwrap().contiguous().unwrap();
    // The last row is unary: sets that do not fit the logits are wrong whichever rows a batch has.
    for rows in [rows(), rows_of(8, &[(2, 2, 3)])] {
        let error = refused(&fixed(), &narrow, &rows);
        assert!(
            matches!(
                error,
                Error::TokenOutsideVocabulary {
                    token: 6,
                    vocabulary: 6
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn a_target_that_is_not_in_its_set() {
    let error = refused(&fixed(), &logits(), &rows_of(8, &[(0, 0, 2), (3, 1, 5)]));
    assert!(
        matches!(
            error,
            Error::TargetNotInSet {
                row: 1,
                position: 3,
                target: 5,
                set: 1,
                size: 2
            }
        ),
        "{error}"
    );
}

#[test]
fn a_set_that_does_not_exist() {
    let error = refused(&fixed(), &logits(), &rows_of(8, &[(0, 0, 2), (3, 4, 5)]));
    assert!(
        matches!(
            error,
            Error::UnknownSet {
                row: 1,
                set: 4,
                sets: 4
            }
        ),
        "{error}"
    );
}

#[test]
fn logits_of_a_dtype_that_has_no_softmax() {
    let integers = logits().ones_like().unwrap().to_dtype(DType::U32).unwrap();
    let error = refused(&fixed(), &integers, &rows());
    assert!(
        matches!(&error, Error::Unsupported { what: "logits", actual, .. } if actual.starts_with("U32")),
        "{error}"
    );
    assert!(fixed().statistics(&integers, &rows()).is_err());
}

#[test]
fn a_gradient_buffer_that_does_not_fit() {
    let (logits, rows) = (logits(), rows());
    let transposed = tensor(&[0.0; 56], &[2, VOCABULARY, 4], DType::F32);
    for (gradient, part) in [
        (logits.clone(), "the memory of the logits"),
        (logits.narrow(0, 0, 2).unwrap(), "the memory of the logits"),
        (logits.to_dtype(DType::BF16).unwrap(), "BF16"),
        (logits.reshape((8, VOCABULARY)).unwrap(), "[8, 7]"),
        (transposed.transpose(1, 2).unwrap(), "strides [28, 1, 4]"),
    ] {
        let error = fixed().value_and_gradient(&logits, &rows, GradientTarget::Into(&gradient));
        let error = error.unwrap_err();
        assert!(
            matches!(&error, Error::Unsupported { what: "gradient", actual, .. }
                if actual.contains(part)),
            "{error}"
        );
    }
}

#[test]
fn marked_rows_of_unequal_fan_out() {
    let adaptive = loss(
        &sets(),
        &strategy(Scope::Marked).into(),
        Convention::adaptive(),
    );
    let marked = |marks| rows().with_marks(marks).unwrap();
    let error = refused(
        &adaptive,
        &logits(),
        &marked(vec![true, true, false, false, false, false]),
    );
    assert!(
        matches!(
            error,
            Error::UnequalFanOut {
                scope: "marked",
                rows: 2,
                tokens: 7
            }
        ),
        "{error}"
    );
    let mut equal = adaptive.clone();
    let marks = vec![true, false, false, true, false, false];
    equal.forward(&logits(), &marked(marks)).unwrap();
}

#[test]
fn the_marked_scope_without_marks() {
    let adaptive = loss(
        &sets(),
        &strategy(Scope::Marked).into(),
        Convention::adaptive(),
    );
    let error = refused(&adaptive, &logits(), &rows_of(8, &[(0, 0, 2)]));
    assert!(error.to_string().contains("with_marks"), "{error}");
}

#[test]
fn the_reference_refuses_what_the_loss_refuses() {
    let values = noise(60, 56, 3.0);
    let refused_by_reference = |vocabulary, temperature: &Temperature, reduction| {
        let convention = Convention {
            reduction,
            times_temperature: false,
        };
        let (sets, rows) = (sets(), rows_of(8, &[(0, 0, 2)]));
        let mut temperature = temperature.clone();
        reference::loss(
            &values,
            vocabulary,
            &sets,
            &rows,
            &mut temperature,
            convention,
        )
        .unwrap_err()
    };
    let at_one = Temperature::fixed(1.0);
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let reduction = Reduction::MeanOver(wrong);
        let error = refused_by_reference(VOCABULARY, &at_one, reduction);
        let expected = fixed().with_reduction(reduction);
        assert_eq!(error.to_string(), expected.unwrap_err().to_string());
    }
    let marked = Temperature::from(strategy(Scope::Marked));
    let error = refused_by_reference(VOCABULARY, &marked, Reduction::Sum);
    let marked = loss(&sets(), &marked, Convention::adaptive());
    let expected = refused(&marked, &logits(), &rows_of(8, &[(0, 0, 2)]));
    assert_eq!(error.to_string(), expected.to_string());
    // More logits than an index counts.
    let error = refused_by_reference(usize::MAX / 2, &at_one, Reduction::Sum);
    assert!(
        matches!(error, Error::LengthMismatch { actual: 56, .. }),
        "{error}"
    );
}

#[test]
fn an_error_keeps_its_words_on_the_way_through_candle_and_back() {
    let error = refused(&fixed(), &logits(), &rows_of(9, &[(0, 0, 2)]));
    let words = error.to_string();
    let in_candle = candle_core::Error::from(error);
    assert!(in_candle.to_string().contains(&words));
    assert!(Error::from(in_candle).to_string().contains(&words));
}
