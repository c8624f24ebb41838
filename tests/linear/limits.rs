use candle_core::{DType, Device, Tensor, Var};
use candle_trie::{
    AdaptiveStrategy, Error, Head, MaskedSoftmaxLoss, Row, Rows, Scope, Temperature, TokenSets,
};

use crate::batch::{Batch, every_option, every_option_with_bear, f64s};

/// A unary row that statistics are taken from, and a row of weight 0, with scores that are NaN.
#[test]
fn rows_that_do_not_count_cannot_spoil_the_result() {
    let sets = TokenSets::from_raw(vec![0, 1, 3], vec![3, 1, 2]).unwrap();
    let strategy = AdaptiveStrategy {
        allow_degenerate: true,
        ..AdaptiveStrategy::default()
    };
    let head = Tensor::new(&[[1.0f32], [2.0], [3.0], [f32::NAN]], &Device::Cpu).unwrap();
    let hidden = Var::new(&[[1.0f32], [f32::NAN], [1.0]], &Device::Cpu).unwrap();
    let row = |position, set, target| Row {
        position,
        set,
        target,
    };
    let all = vec![row(0, 0, 3), row(1, 1, 2), row(2, 1, 1)];
    for (rows, weights) in [
        (all.clone(), vec![1.0, 0.0, 1.0]),
        (all[..2].to_vec(), vec![1.0, 0.0]),
    ] {
        let rows = Rows::from_raw(3, rows)
            .unwrap()
            .with_weights(weights)
            .unwrap();
        let mut loss = MaskedSoftmaxLoss::new(&sets, strategy).unwrap();
        let output = loss.forward((&hidden, &head), &rows).unwrap();
        let gradients = output.loss.backward().unwrap();
        let found = [f64s(&output.loss), f64s(gradients.get(&hidden).unwrap())].concat();
        assert!(found.iter().all(|number| number.is_finite()), "{found:?}");
        assert_eq!(found[1..3], [0.0; 2]);
        assert_eq!(found[3] != 0.0, rows.len() == 3);
    }
}

/// Such rows are computed for their statistics: in matrix products, ragged, and over the whole vocabulary.
#[test]
fn rows_without_weight_cannot_spoil_the_gradients_of_others() {
    let batch = Batch::new(16, 3);
    let strategy = AdaptiveStrategy {
        scope: Scope::Branching,
        ..AdaptiveStrategy::default()
    };
    for whole_vocabulary in [false, true] {
        let options = (every_option().into_iter())
            .find(|options| options.weights && options.whole_vocabulary == whole_vocabulary)
            .unwrap();
        let rows = batch.rows(&options);
        let weights = rows.weights().unwrap();
        let [hidden, head, bias] = batch.tensors(DType::F32);
        let mut spoilt: Vec<Vec<f32>> = hidden.to_vec2().unwrap();
        for (row, &weight) in rows.as_slice().iter().zip(weights) {
            if weight == 0.0 {
                spoilt[row.position as usize].fill(f32::NAN);
            }
        }
        let spoilt = Var::new(spoilt, &Device::Cpu).unwrap();
        let gradients = |hidden: &Var| {
            let loss = MaskedSoftmaxLoss::new(batch.sets(&options), strategy).unwrap();
            let head_and_bias = Head::with_bias(&head, &bias);
            let output = loss.forward_at((hidden, head_and_bias), &rows, 1.5);
            let gradients = output.unwrap().loss.backward().unwrap();
            [hidden, &head, &bias].map(|var| f64s(gradients.get(var).unwrap()))
        };
        let same = gradients(&spoilt) == gradients(&hidden);
        assert!(same, "over the whole vocabulary: {whole_vocabulary}");
    }
}

#[test]
fn an_evaluation_refuses_a_temperature_that_is_none() {
    let batch = Batch::new(8, 1);
    let options = &every_option()[0];
    let [hidden, head, _] = batch.tensors(DType::F32);
    let logits = hidden.matmul(&head.t().unwrap()).unwrap();
    let rows = batch.rows(options);
    let mut loss = batch.loss(options);
    for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        *loss.temperature_mut().unwrap() = Temperature::fixed(value);
        for refused in [
            loss.evaluate(&logits, &rows),
            loss.evaluate((&hidden, &*head), &rows),
        ] {
            assert!(matches!(refused, Err(Error::OutOfRange { .. })), "{value}");
        }
    }
}

#[test]
fn hidden_states_of_a_narrowed_view_are_read_where_they_lie() {
    let batch = Batch::new(16, 2);
    let options = &every_option()[6];
    let [hidden, head, _] = batch.tensors(DType::F64);
    let padding = Tensor::ones((batch.positions, 5), DType::F64, &Device::Cpu).unwrap();
    let wide = Tensor::cat(&[&padding, &hidden, &padding], 1).unwrap();
    let view = wide.narrow(1, 5, 16).unwrap();
    let rows = batch.rows(options);
    let plain = batch
        .loss(options)
        .forward((&hidden, &*head), &rows)
        .unwrap();
    let viewed = batch.loss(options).forward((&view, &*head), &rows).unwrap();
    assert_eq!(f64s(&plain.loss), f64s(&viewed.loss));
}

#[test]
fn empty_batches_give_loss_zero_and_gradient_zero() {
    let batch = Batch::new(8, 1);
    for options in [every_option(), every_option_with_bear()].concat() {
        let [hidden, head, _] = batch.tensors(DType::F32);
        let rows = Rows::from_raw(batch.positions, vec![]).unwrap();
        let rows = rows.with_marks(vec![]).unwrap();
        let mut loss = batch.loss(&options);
        let before = loss.temperature().unwrap().value();
        let output = loss.forward((&hidden, &*head), &rows).unwrap();
        assert!(f64s(&output.loss).iter().all(|&loss| loss == 0.0));
        assert_eq!(output.read_temperature().unwrap(), before);
        let gradients = output.loss.backward().unwrap();
        assert!(
            f64s(gradients.get(&hidden).unwrap())
                .iter()
                .all(|&entry| entry == 0.0)
        );
        assert!(
            f64s(gradients.get(&head).unwrap())
                .iter()
                .all(|&entry| entry == 0.0)
        );
    }
}

#[test]
fn hidden_states_of_no_elements_are_refused() {
    const TOKENS: u32 = 200;
    const ROWS: usize = 4; // As many as make a matrix product.
    let sets = TokenSets::from_raw(vec![0, TOKENS], (0..TOKENS).collect()).unwrap();
    let rows = (0..ROWS as u32).map(|position| Row {
        position,
        set: 0,
        target: position,
    });
    let rows = Rows::from_raw(ROWS, rows.collect()).unwrap();
    let [hidden, head] = [ROWS, TOKENS as usize]
        .map(|length| Var::zeros((length, 0), DType::F32, &Device::Cpu).unwrap());
    let mut loss = MaskedSoftmaxLoss::new(&sets, Temperature::fixed(1.0)).unwrap();
    let refused = loss.forward((&hidden, &*head), &rows).unwrap_err();
    assert!(
        matches!(&refused, Error::Unsupported { actual, .. } if actual == "shape [4, 0]"),
        "{refused}"
    );
}

#[test]
fn what_does_not_fit_is_refused_with_its_numbers() {
    let batch = Batch::new(8, 1);
    let options = &every_option()[0];
    let rows = batch.rows(options);
    let tensor = |rows: usize, width: usize, dtype| {
        Tensor::zeros((rows, width), dtype, &Device::Cpu).unwrap()
    };
    let run = |hidden: &Tensor, head: &Tensor| {
        batch
            .loss(options)
            .forward((hidden, head), &rows)
            .map(|_| ())
            .unwrap_err()
    };
    let (hidden, head) = (tensor(97, 8, DType::F32), tensor(211, 8, DType::F32));
    // The second one is transposed: it has too few rows for the tokens, but its width is told first.
    for (vocabulary, width) in [(211, 9), (8, 211)] {
        let error = run(&hidden, &tensor(vocabulary, width, DType::F32));
        assert!(
            matches!(error, Error::LengthMismatch { expected: 8, actual, .. } if actual == width),
            "{error}"
        );
    }
    let error = run(&hidden, &tensor(100, 8, DType::F32));
    assert!(
        matches!(
            error,
            Error::TokenOutsideVocabulary {
                vocabulary: 100,
                ..
            }
        ),
        "{error}"
    );
    let error = run(&hidden, &tensor(211, 8, DType::BF16));
    assert!(
        matches!(error, Error::Unsupported { what: "head", .. }),
        "{error}"
    );
    let error = run(&tensor(96, 8, DType::F32), &head);
    assert!(
        matches!(
            error,
            Error::PositionMismatch {
                rows: 97,
                positions: 96,
                ..
            }
        ),
        "{error}"
    );
    let error = run(&tensor(97, 8, DType::U32), &tensor(211, 8, DType::U32));
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let error = run(&hidden, &tensor(8, 211, DType::F32).t().unwrap());
    assert!(
        matches!(error, Error::Unsupported { what: "head", .. }),
        "{error}"
    );
    let short = Tensor::zeros(210, DType::F32, &Device::Cpu).unwrap();
    let strided = tensor(211, 2, DType::F32).get_on_dim(1, 0).unwrap();
    for (bias, part) in [(short, "shape [210]"), (strided, "strides [2]")] {
        let with_bias = Head::with_bias(&head, &bias);
        let error = batch
            .loss(options)
            .forward((&hidden, with_bias), &rows)
            .unwrap_err();
        assert!(
            matches!(&error, Error::Unsupported { what: "head bias", actual, .. }
                if actual.contains(part)),
            "{error}"
        );
    }
}

#[test]
fn the_checked_mode_names_the_row_whose_score_is_not_finite() {
    let batch = Batch::new(8, 1);
    for options in [&every_option()[0], &every_option()[20]] {
        let [hidden, head, _] = batch.tensors(DType::F32);
        let mut values = hidden.to_vec2::<f32>().unwrap();
        values[2][0] = f32::NAN;
        let hidden = Tensor::new(values, &Device::Cpu).unwrap();
        let rows = batch.rows(options);
        let error = batch
            .loss(options)
            .check_finite()
            .forward((&hidden, &*head), &rows);
        assert!(matches!(error, Err(Error::NonFinite { position: 2, .. })));
        let output = batch
            .loss(options)
            .forward((&hidden, &*head), &rows)
            .unwrap();
        assert!(f64s(&output.loss)[0].is_nan());
    }
}
