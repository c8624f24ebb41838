use candle_core::{DType, Device, Tensor};
use candle_trie::{Error, FrozenHead, Head, MaskedSoftmaxLoss, Row, Rows, Temperature, TokenSets};

use crate::batch::{Batch, assert_close, every_option, f64s};

#[test]
fn a_frozen_head_gives_the_same_bits_and_takes_no_gradient() {
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
        for bytes in [0, 30_000, FrozenHead::DEFAULT_LIMIT] {
            for options in every_option().iter().filter(|options| !options.bias) {
                let batch = Batch::new(24, 5);
                let [hidden, head, _] = batch.tensors(dtype);
                let rows = batch.rows(options);
                let frozen =
                    FrozenHead::with_limit(&head, None, batch.sets(options), bytes).unwrap();
                let tracked = batch
                    .loss(options)
                    .forward((&hidden, &*head), &rows)
                    .unwrap();
                let output = batch
                    .loss(options)
                    .forward((&hidden, &frozen), &rows)
                    .unwrap();
                assert_eq!(f64s(&output.loss), f64s(&tracked.loss));
                let (gradients, expected) = (
                    output.loss.backward().unwrap(),
                    tracked.loss.backward().unwrap(),
                );
                assert!(gradients.get(&head).is_none());
                assert_eq!(
                    f64s(gradients.get(&hidden).unwrap()),
                    f64s(expected.get(&hidden).unwrap())
                );
            }
        }
    }
}

/// Its gathered rows belong to set numbers, which mean other tokens elsewhere.
#[test]
fn a_head_frozen_for_other_sets_is_refused() {
    let sets = |size: u32| TokenSets::from_raw(vec![0, size], (0..size).collect()).unwrap();
    let head = Tensor::ones((1100, 4), DType::F32, &Device::Cpu).unwrap();
    let hidden = Tensor::ones((8, 4), DType::F32, &Device::Cpu).unwrap();
    let frozen = FrozenHead::new(&head, sets(1000)).unwrap();
    assert_eq!(frozen.gathered_sets(), 1);
    let row = |position| Row {
        position,
        set: 0,
        target: 1,
    };
    let rows = Rows::from_raw(8, (0..8).map(row).collect()).unwrap();
    let run = |sets: TokenSets| {
        let mut loss = MaskedSoftmaxLoss::new(sets, Temperature::fixed(1.0)).unwrap();
        loss.forward((&hidden, &frozen), &rows)
    };
    let error = run(sets(1100)).unwrap_err();
    assert!(
        matches!(&error, Error::Unsupported { what: "head", expected, actual }
            if expected.contains("1100") && actual.contains("1000")),
        "{error}"
    );
    run(sets(1000)).unwrap();
    run(TokenSets::whole_vocabulary(1100).unwrap()).unwrap();
}

/// Gathered rows of the old head and others of the new one would give the loss of neither.
#[test]
fn a_head_that_has_changed_since_it_was_frozen_is_refused() {
    let changed = |error: Error| {
        let words = error.to_string();
        assert!(
            words.contains("has changed since") && words.contains("make the frozen head anew"),
            "{words}"
        );
    };
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
        let batch = Batch::new(24, 5);
        let options = every_option()
            .into_iter()
            .find(|options| !options.bias)
            .unwrap();
        let [hidden, head, _] = batch.tensors(dtype);
        let rows = batch.rows(&options);
        let frozen = FrozenHead::new(&head, batch.sets(&options)).unwrap();
        assert_eq!(frozen.gathered_sets(), 2);
        let mut loss = batch.loss(&options);
        let before = loss.forward((&hidden, &frozen), &rows).unwrap();

        let another = ((head.as_tensor() * 2.0).unwrap() + 1.0).unwrap();
        head.set(&another).unwrap();
        changed(loss.forward((&hidden, &frozen), &rows).unwrap_err());
        changed(loss.evaluate((&hidden, &frozen), &rows).unwrap_err());
        changed(loss.statistics((&hidden, &frozen), &rows).unwrap_err());
        changed(before.loss.backward().unwrap_err().into());

        let made_anew = FrozenHead::new(&head, batch.sets(&options)).unwrap();
        let [found, expected] = [(&made_anew).into(), Head::from(&*head)]
            .map(|head| loss.forward((&hidden, head), &rows).unwrap());
        assert_eq!(f64s(&found.loss), f64s(&expected.loss));
    }
}

/// Of one gathered row, and of one column of all of them.
#[test]
fn a_change_of_few_elements_is_noticed() {
    let batch = Batch::new(24, 5);
    let options = every_option()
        .into_iter()
        .find(|options| !options.bias)
        .unwrap();
    let rows = batch.rows(&options);
    let common: Vec<u32> = batch.sets.get(0).unwrap().iter().collect();
    let refused = |is_changed: &dyn Fn(u32, usize) -> bool| {
        let [hidden, head, _] = batch.tensors(DType::F32);
        let frozen = FrozenHead::new(&head, batch.sets(&options)).unwrap();
        let values = (batch.head.iter().enumerate()).map(|(index, &value)| {
            let is_changed = is_changed((index / batch.width) as u32, index % batch.width);
            value as f32 + if is_changed { 1.0 } else { 0.0 }
        });
        let values: Vec<f32> = values.collect();
        head.set(&Tensor::from_vec(values, head.shape(), &Device::Cpu).unwrap())
            .unwrap();
        let output = batch.loss(&options).evaluate((&hidden, &frozen), &rows);
        output.is_err()
    };
    assert!(!refused(&|_, _| false));
    for &token in &common {
        assert!(refused(&|changed, _| changed == token), "token {token}");
    }
    for column in 0..batch.width {
        assert!(refused(&|_, changed| changed == column), "column {column}");
    }
}

#[test]
fn the_gathered_rows_stay_within_their_bytes() {
    let batch = Batch::new(24, 5);
    let [_, head, _] = batch.tensors(DType::F32);
    let gathered = |bytes| {
        FrozenHead::with_limit(&head, None, &batch.sets, bytes)
            .unwrap()
            .gathered_sets()
    };
    let row = (24 + 16) * 4;
    assert_eq!(gathered(40 * row - 1), 0);
    assert_eq!(
        gathered(40 * row),
        1,
        "the smaller of the two sets of 32 tokens or more"
    );
    assert_eq!(gathered(190 * row), 2);
}

#[test]
fn rows_are_gathered_for_none_but_the_first_2_to_the_20_sets() {
    let head = Tensor::zeros((40, 4), DType::F32, &Device::Cpu).unwrap();
    for (before, gathered) in [((1 << 20) - 1, 1), (1 << 20, 0)] {
        // Empty sets, and behind them one of 40 tokens.
        let mut offsets = vec![0; before + 1];
        offsets.push(40);
        let sets = TokenSets::from_raw(offsets, (0..40).collect()).unwrap();
        let frozen = FrozenHead::new(&head, &sets).unwrap();
        assert_eq!(frozen.gathered_sets(), gathered);
    }
}

#[test]
fn tied_embeddings_receive_the_gradients_of_both_their_uses() {
    let batch = Batch::new(8, 11);
    let options = &every_option()[0];
    let [_, head, _] = batch.tensors(DType::F64);
    let tokens = Tensor::from_vec(
        (0..batch.positions as u32).collect::<Vec<_>>(),
        batch.positions,
        &Device::Cpu,
    )
    .unwrap();
    let gradient = |linear: bool| {
        let hidden = head.index_select(&tokens, 0).unwrap();
        let rows = batch.rows(options);
        let output = match linear {
            true => batch.loss(options).forward((&hidden, &*head), &rows),
            false => {
                let logits = hidden.matmul(&head.t().unwrap()).unwrap();
                batch.loss(options).forward(&logits, &rows)
            }
        };
        f64s(output.unwrap().loss.backward().unwrap().get(&head).unwrap())
    };
    assert_close(&gradient(true), &gradient(false), 1e-12, "tied embedding");
}
