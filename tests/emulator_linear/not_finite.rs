//! Logits and hidden states that are infinite or no numbers.

use candle_trie::{AdaptiveStrategy, Convention, Reduction, Scope, Temperature};
use half::{bf16, f16};

use crate::batch::{Batch, Options};
use crate::device::{Case, Gradients};
use crate::number::Number;
use crate::numerics::{by_position, sum_of_losses, two_sets};

/// Which rows have the first set.
fn rows_of_first(batch: &Batch) -> Vec<usize> {
    (batch.rows.as_slice().iter())
        .filter(|row| row.set == 0)
        .map(|row| row.position as usize)
        .collect()
}

/// That some of a row's logits are −∞ takes them out of its set.
fn logits_of_minus_infinity_count_nothing() {
    let mut batch = two_sets();
    let targets: Vec<u32> = batch.rows.as_slice().iter().map(|row| row.target).collect();
    // A whole tile of the first set, but for targets, and then some.
    for token in (0..130).chain([150, 199]) {
        if !targets.contains(&token) {
            batch.bias[token as usize] = f64::NEG_INFINITY;
        }
    }
    let options = Options {
        temperature: Temperature::fixed(0.8),
        ..sum_of_losses(true)
    };
    for gradients in [Gradients::All, Gradients::Direct] {
        let case = Case {
            gradients,
            ..Case::new(&batch, &options)
        };
        case.assert_correct::<f32>("−∞");
        case.assert_correct::<f16>("−∞");
        case.assert_correct::<bf16>("−∞");
    }
    // All but the target.
    for token in 0..200 {
        if !targets.contains(&token) {
            batch.bias[token as usize] = f64::NEG_INFINITY;
        }
    }
    let case = Case::new(&batch, &options);
    case.assert_correct::<f32>("all but the targets are −∞");
    case.assert_correct::<f16>("all but the targets are −∞");
}

/// That rows for which `is_bad` is true are NaN, and all others what they are without them.
fn assert_only_bad<T: Number>(bad: &Batch, good: &Batch, is_bad: impl Fn(usize) -> bool) {
    let options = Options {
        convention: Convention {
            reduction: Reduction::None,
            times_temperature: false,
        },
        ..sum_of_losses(true)
    };
    for gradients in [Gradients::Direct, Gradients::Hidden] {
        let found = by_position::<T>(bad, &options, gradients);
        let expected = by_position::<T>(good, &options, gradients);
        for position in 0..bad.positions {
            let row = position * bad.width..(position + 1) * bad.width;
            let (loss, gradient) = (found.loss[position], &found.gradient[row.clone()]);
            if is_bad(position) {
                assert!(loss.is_nan(), "{position}: {loss}");
                assert!(gradient.iter().any(|value| value.is_nan()), "{position}");
            } else {
                assert_eq!(loss, expected.loss[position], "{position}");
                assert_eq!(gradient, &expected.gradient[row], "{position}");
            }
        }
    }
    // And where they are added up: no number, and no end that does not come.
    let found = by_position::<T>(bad, &sum_of_losses(true), Gradients::All);
    assert!(found.loss[0].is_nan());
    assert!(found.head_gradient.iter().any(|value| value.is_nan()));
}

fn a_logit_of_infinity_spoils_its_row_alone() {
    let good = two_sets();
    let first = rows_of_first(&good);
    let of_second: Vec<u32> = good.sets.get(1).unwrap().iter().collect();
    // Token 3 of the first set, which the second has not.
    let token = (3..190).find(|token| !of_second.contains(token)).unwrap() as usize;
    for value in [f64::INFINITY, f64::NAN] {
        let mut bad = two_sets();
        bad.bias[token] = value;
        assert_only_bad::<f32>(&bad, &good, |position| first.contains(&position));
        assert_only_bad::<f16>(&bad, &good, |position| first.contains(&position));
        assert_only_bad::<bf16>(&bad, &good, |position| first.contains(&position));
    }
}

fn a_hidden_state_that_is_no_number_spoils_its_row_alone() {
    let good = two_sets();
    let position = rows_of_first(&good)[4];
    let mut bad = two_sets();
    bad.hidden[position * 24 + 5] = f64::NAN;
    assert_only_bad::<f32>(&bad, &good, |other| other == position);
    assert_only_bad::<f16>(&bad, &good, |other| other == position);
    assert_only_bad::<bf16>(&bad, &good, |other| other == position);
}

/// Tokens of several sets share a tile of the head's gradient.
fn a_hidden_state_that_is_no_number_spoils_the_head_at_tokens_of_its_set_alone() {
    let good = two_sets();
    let second = good.rows.as_slice().iter().find(|row| row.set == 1);
    let element = second.unwrap().position as usize * 24 + 5;
    let tokens: Vec<u32> = good.sets.get(1).unwrap().iter().collect();
    let options = sum_of_losses(true);
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut bad = two_sets();
        bad.hidden[element] = value;
        let found = by_position::<bf16>(&bad, &options, Gradients::All);
        let expected = by_position::<bf16>(&good, &options, Gradients::All);
        for token in 0..200 {
            let row = token * 24..(token + 1) * 24;
            if tokens.contains(&(token as u32)) {
                let row = &found.head_gradient[row];
                assert!(row.iter().all(|value| value.is_nan()), "{token}, {value}");
            } else {
                let expected = &expected.head_gradient[row.clone()];
                assert_eq!(&found.head_gradient[row], expected, "{token}, {value}");
            }
        }
    }
}

/// Rows with a weight of 0 are in the statistics alone, which are no numbers then: τ stays, and nothing
/// else is touched.
fn a_row_without_a_loss_may_be_no_number_beside_good_rows_of_its_tile() {
    let good = two_sets();
    let mut bad = two_sets();
    // As the options' weights are.
    let without_loss: Vec<usize> = (bad.rows.as_slice().iter().step_by(4))
        .map(|row| row.position as usize)
        .collect();
    let first = rows_of_first(&good);
    assert!(without_loss.iter().any(|position| first.contains(position)));
    for &position in &without_loss {
        bad.hidden[position * 24..(position + 1) * 24].fill(f64::NAN);
    }
    let weighted = |warm_up| Options {
        temperature: Temperature::from(AdaptiveStrategy {
            scope: Scope::Branching,
            alpha: 0.5,
            initial: 1.5,
            warm_up,
            ..AdaptiveStrategy::default()
        }),
        weights: true,
        ..sum_of_losses(true)
    };
    // The temperature takes a step, or none.
    let (adaptive, fixed) = (weighted(0), weighted(1));
    for gradients in [Gradients::All, Gradients::Direct] {
        assert_ignored::<f32>(&bad, &adaptive, &good, &fixed, gradients);
        assert_ignored::<f16>(&bad, &adaptive, &good, &fixed, gradients);
        assert_ignored::<bf16>(&bad, &adaptive, &good, &fixed, gradients);
    }
}

fn assert_ignored<T: Number>(
    bad: &Batch,
    adaptive: &Options,
    good: &Batch,
    fixed: &Options,
    gradients: Gradients,
) {
    let found = by_position::<T>(bad, adaptive, gradients);
    let expected = by_position::<T>(good, fixed, gradients);
    assert_eq!([found.temperature, expected.temperature], [1.5; 2]);
    assert!(found.statistics.mean().is_nan() && !expected.statistics.mean().is_nan());
    assert_eq!(found.loss, expected.loss);
    assert_eq!(found.gradient, expected.gradient);
    assert_eq!(found.head_gradient, expected.head_gradient);
    assert_eq!(found.bias_gradient, expected.bias_gradient);
}

candle_trie_emulator::emulated_tests! {
    logits_of_minus_infinity_count_nothing,
    a_logit_of_infinity_spoils_its_row_alone,
    a_hidden_state_that_is_no_number_spoils_its_row_alone,
    a_hidden_state_that_is_no_number_spoils_the_head_at_tokens_of_its_set_alone,
    a_row_without_a_loss_may_be_no_number_beside_good_rows_of_its_tile,
}
