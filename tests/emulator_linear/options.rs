//! Every option with every other, on one batch that has rows of every kind.

use candle_trie::{Row, Rows, Temperature, TokenSets};
use half::{bf16, f16};

use crate::batch::{Batch, Options, every_option, every_option_with_bear};
use crate::device::{Case, Gradients};
use crate::number::Number;

/// Those over listed sets.
fn options() -> impl Iterator<Item = Options> {
    every_option()
        .into_iter()
        .filter(|options| !options.whole_vocabulary)
}

fn every_option_in<T: Number>() {
    let batch = Batch::new(24, 7);
    for (index, options) in options().enumerate() {
        let case = Case {
            resident: index % 3 == 1 && matches!(options.temperature, Temperature::Adaptive(_)),
            ..Case::new(&batch, &options)
        };
        case.assert_correct::<T>(&format!("option {index}"));
        if index % 4 != 0 {
            continue;
        }
        let evaluation = Case {
            gradients: [Gradients::None, Gradients::Direct, Gradients::Hidden][index / 4 % 3],
            ..case
        };
        evaluation.assert_correct::<T>(&format!("option {index}"));
    }
}

fn every_option_in_f32() {
    every_option_in::<f32>();
}

fn every_option_in_f16() {
    every_option_in::<f16>();
}

fn every_option_in_bf16() {
    every_option_in::<bf16>();
}

/// In turn every type, and every kind of gradient.
fn every_option_with_row_weights() {
    let batch = Batch::new(24, 7);
    let listed = every_option_with_bear()
        .into_iter()
        .filter(|options| !options.whole_vocabulary);
    for (index, options) in listed.enumerate() {
        let case = Case {
            resident: index % 3 == 1 && matches!(options.temperature, Temperature::Adaptive(_)),
            gradients: [
                Gradients::All,
                Gradients::Direct,
                Gradients::None,
                Gradients::Hidden,
            ][index % 4],
            ..Case::new(&batch, &options)
        };
        let what = format!("option {index} with BEAR");
        match index % 3 {
            0 => case.assert_correct::<f32>(&what),
            1 => case.assert_correct::<f16>(&what),
            _ => case.assert_correct::<bf16>(&what),
        }
    }
}

/// As the nodes of a trie often have: their rows are one group, whose statistics, targets and weights are their own.
fn rows_of_sets_with_the_same_tokens() {
    let mut batch = Batch::new(24, 7);
    let (offsets, tokens) = batch.sets.as_raw().unwrap();
    let again = offsets[1..].iter().map(|&end| end + tokens.len() as u32);
    let twice = TokenSets::from_raw(
        offsets.iter().copied().chain(again).collect(),
        tokens.repeat(2),
    );
    let rows = batch.rows.as_slice().iter().enumerate();
    let rows = rows.map(|(index, &row)| Row {
        set: row.set + if index % 3 == 1 { 6 } else { 0 },
        ..row
    });
    batch.rows = Rows::from_raw(batch.positions, rows.collect()).unwrap();
    batch.sets = twice.unwrap();
    for (index, options) in options().enumerate().step_by(2) {
        let case = Case::new(&batch, &options);
        let what = format!("option {index}, the same sets twice");
        match index / 2 % 3 {
            0 => case.assert_correct::<f32>(&what),
            1 => case.assert_correct::<f16>(&what),
            _ => case.assert_correct::<bf16>(&what),
        }
    }
}

fn gradients_may_be_made_again() {
    let batch = Batch::new(24, 7);
    for (index, options) in options().enumerate().step_by(7) {
        let case = Case {
            backward_passes: 2,
            ..Case::new(&batch, &options)
        };
        case.assert_correct::<bf16>(&format!("option {index}"));
    }
}

candle_trie_emulator::emulated_tests! {
    every_option_in_f32,
    every_option_in_f16,
    every_option_in_bf16,
    every_option_with_row_weights,
    rows_of_sets_with_the_same_tokens,
    gradients_may_be_made_again,
}
