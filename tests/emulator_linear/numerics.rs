//! Numbers that are hard on 16 bits.

use candle_trie::{
    AdaptiveStrategy, Convention, Reduction, Row, Rows, Scope, Temperature, TokenSets,
};
use candle_trie_emulator::Emulator;
use half::{bf16, f16};

use crate::batch::{Batch, Options};
use crate::device::{Case, Gradients, Outcome};
use crate::number::Number;
use crate::shapes::{batch, options};

/// The sum of the losses, at τ = 1.
pub fn sum_of_losses(bias: bool) -> Options {
    Options {
        whole_vocabulary: false,
        temperature: Temperature::fixed(1.0),
        convention: Convention {
            reduction: Reduction::Sum,
            times_temperature: false,
        },
        bias,
        weights: false,
        bear: None,
    }
}

/// Losses and gradients, position by position.
pub fn by_position<T: Number>(batch: &Batch, options: &Options, gradients: Gradients) -> Outcome {
    let case = Case {
        gradients,
        ..Case::new(batch, options)
    };
    case.run::<T>(&Emulator::with_seed(2)).unwrap()
}

/// A tile and a half of one set, with rows to spare in the tiles, and another set.
pub fn two_sets() -> Batch {
    batch(24, 200, &[(190, 9), (20, 5)])
}

/// One set that is the vocabulary, with token 0 the target of every row.
fn one_set(tokens: usize, width: usize, rows: usize) -> Batch {
    let row = |position| Row {
        position,
        set: 0,
        target: 0,
    };
    Batch {
        hidden: vec![0.0; rows * width],
        head: vec![0.0; tokens * width],
        bias: vec![0.0; tokens],
        positions: rows,
        vocabulary: tokens,
        width,
        sets: TokenSets::from_raw(vec![0, tokens as u32], (0..tokens as u32).collect()).unwrap(),
        rows: Rows::from_raw(rows, (0..rows as u32).map(row).collect()).unwrap(),
    }
}

/// The target's logit is `gap` above those of all others in the first row, and a little less in others.
/// The others' head rows are of ones but for that, the target's of zeros: what is pulled to the others is
/// the sum of their probabilities.
fn strong_target(tokens: usize, gap: f64) -> Batch {
    let (width, rows) = (16, 3);
    let mut batch = one_set(tokens, width, rows);
    for row in 0..rows {
        batch.hidden[row * width] = 1.0 - row as f64 / 32.0;
    }
    batch.head[width..].fill(1.0);
    for head in batch.head.chunks_mut(width) {
        head[0] = 0.0;
    }
    batch.head[0] = gap;
    batch
}

/// To the rounding of the result and of what it is made of, entry by entry.
fn assert_within_rounding<T: Number>(case: &Case, scale: f64, least: f64, what: &str) {
    let expected = case.batch.expected(case.options);
    let outcome = case.run::<T>(&Emulator::with_seed(1)).unwrap();
    for (index, (found, expected)) in outcome.gradient.iter().zip(expected.hidden).enumerate() {
        let expected = expected * scale;
        let close = T::STEP * expected.abs() + least;
        assert!(
            (found - expected).abs() <= close,
            "{what}, {:?}, {:?}: entry {index} is {found}, not {expected}",
            T::ELEMENT,
            case.gradients
        );
    }
    let largest = outcome.gradient.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    assert!(largest > 4.0 * least, "{what}: nothing is to be seen");
}

/// The smallest step of f16.
const F16_STEP: f64 = 5.97e-8;

fn a_tail_of_small_probabilities_pulls_together() {
    // 2000 tokens of 2e-8 each.
    let batch = strong_target(2001, 17.75);
    for whole_vocabulary in [false, true] {
        let options = Options {
            whole_vocabulary,
            ..sum_of_losses(false)
        };
        let direct = Case {
            gradients: Gradients::Direct,
            ..Case::new(&batch, &options)
        };
        assert_within_rounding::<f16>(&direct, 1.0, F16_STEP, "a tail");
        assert_within_rounding::<bf16>(&direct, 1.0, 0.0, "a tail");
        assert_within_rounding::<f32>(&direct, 1.0, 1e-9, "a tail");
        let scaled = Case {
            gradients: Gradients::Hidden,
            loss_scale: 65_536.0,
            ..direct
        };
        assert_within_rounding::<f16>(&scaled, 32_768.0, F16_STEP, "a tail");
    }
}

/// As far below the target as a loss that is scaled for f16 lets it be seen.
fn a_tail_far_below_the_target_keeps_its_digits() {
    for gap in [23.0, 25.5, 27.5] {
        let batch = strong_target(2001, gap);
        let options = sum_of_losses(false);
        let scaled = Case {
            gradients: Gradients::Hidden,
            loss_scale: 131_072.0,
            ..Case::new(&batch, &options)
        };
        assert_within_rounding::<f16>(&scaled, 65_536.0, F16_STEP, &format!("{gap} below"));
        assert_within_rounding::<bf16>(&scaled, 65_536.0, 0.0, &format!("{gap} below"));
    }
}

/// Further than f32 reaches: 0, and it is written.
fn a_target_above_all_has_no_gradient() {
    let batch = strong_target(300, 200.0);
    let options = sum_of_losses(false);
    for gradients in [Gradients::All, Gradients::Direct] {
        let case = Case {
            gradients,
            ..Case::new(&batch, &options)
        };
        let outcome = case.run::<bf16>(&Emulator::default()).unwrap();
        assert!(outcome.gradient.iter().all(|&value| value == 0.0));
        assert_eq!(outcome.loss, [0.0]);
    }
}

/// p_y − 1 is −0.001, which bf16 has not as the difference of numbers near 1.
fn a_target_that_is_all_but_certain_keeps_its_gradient() {
    for (tokens, gap) in [(2, 6.875), (300, 12.5)] {
        let mut batch = strong_target(tokens, gap);
        for (index, head) in batch.head.chunks_mut(16).enumerate() {
            for (column, value) in head.iter_mut().enumerate().skip(1) {
                *value = ((index * 7 + column * 3) % 11) as f64 / 8.0 - 0.5;
            }
        }
        let options = sum_of_losses(false);
        let p = 1.0 / (1.0 + (tokens - 1) as f64 * (-gap).exp());
        assert!((p - 0.999).abs() < 2e-4, "{p}");
        for gradients in [Gradients::Direct, Gradients::Hidden] {
            let case = Case {
                gradients,
                ..Case::new(&batch, &options)
            };
            let scale = case.upstream_of(0);
            // Entries whose terms cancel have the error of the terms.
            let least = |step: f64| 0.002 * scale * step;
            assert_within_rounding::<f16>(&case, scale, least(f16::STEP) + F16_STEP, "certain");
            assert_within_rounding::<bf16>(&case, scale, least(bf16::STEP), "certain");
        }
    }
}

/// Head rows of language models have much in common: here 64 in the second column, whose gradient is 0.
fn what_all_head_rows_have_in_common_cancels() {
    let mut batch = two_sets();
    for hidden in batch.hidden.chunks_mut(24) {
        hidden[1] = 0.0;
    }
    for head in batch.head.chunks_mut(24) {
        head[1] = 64.0;
    }
    let options = sum_of_losses(true);
    for gradients in [Gradients::Direct, Gradients::Hidden] {
        let check = |gradient: &[f64]| {
            for row in gradient.chunks(24) {
                assert!(row[1].abs() < 64.0 * 2e-6, "{}", row[1]);
            }
        };
        check(&by_position::<f16>(&batch, &options, gradients).gradient);
        check(&by_position::<bf16>(&batch, &options, gradients).gradient);
    }
}

fn large_logits_lose_nothing() {
    // 1e4 and 9999, −1e4 and −9999, in f32 sums.
    for sign in [1.0, -1.0] {
        let (width, tokens) = (16, 140);
        let mut batch = one_set(tokens, width, 9);
        for (index, hidden) in batch.hidden.chunks_mut(width).enumerate() {
            hidden[0] = 100.0;
            hidden[1] = 1.0 + index as f64 / 8.0;
        }
        for (index, head) in batch.head.chunks_mut(width).enumerate() {
            head[0] = sign * 100.0;
            head[1] = (index % 9) as f64 / 4.0 - 1.0;
            head[2] = (index % 5) as f64 / 4.0 - 0.5;
        }
        let adaptive = AdaptiveStrategy {
            scope: Scope::Branching,
            alpha: 0.5,
            ..AdaptiveStrategy::default()
        };
        for options in [sum_of_losses(true), options(adaptive)] {
            let case = Case::new(&batch, &options);
            case.assert_correct::<f32>("large");
            case.assert_correct::<f16>("large");
            case.assert_correct::<bf16>("large");
        }
    }
}

fn equal_logits_share_equally() {
    let mut batch = one_set(300, 16, 9);
    for (index, value) in batch.head.iter_mut().enumerate() {
        *value = ((index * 7) % 13) as f64 / 8.0 - 0.75;
    }
    let options = sum_of_losses(false);
    let case = Case::new(&batch, &options);
    case.assert_correct::<f32>("equal");
    case.assert_correct::<f16>("equal");
    case.assert_correct::<bf16>("equal");
    let outcome = case.run::<f32>(&Emulator::default()).unwrap();
    let expected = 9.0 * 300f64.ln();
    assert!((outcome.loss[0] - expected).abs() < 1e-5 * expected);
}

candle_trie_emulator::emulated_tests! {
    a_tail_of_small_probabilities_pulls_together,
    a_tail_far_below_the_target_keeps_its_digits,
    a_target_above_all_has_no_gradient,
    a_target_that_is_all_but_certain_keeps_its_gradient,
    what_all_head_rows_have_in_common_cancels,
    large_logits_lose_nothing,
    equal_logits_share_equally,
}
