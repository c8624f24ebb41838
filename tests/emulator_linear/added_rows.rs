//! Heads in two parts: frozen rows, and added rows that take a gradient.

use candle_trie::launch::{Element, LinearGradients, LinearPlan, TemperaturePlan};
use candle_trie::{Rows, TokenSets};
use candle_trie_emulator::Emulator;
use half::{bf16, f16};

use crate::batch::{Batch, Options, every_option, every_option_with_bear};
use crate::device::{Case, Gradients};
use crate::emulated::{LIMITS, Recorder};
use crate::number::Number;

/// A head in two parts has no bias.
fn options() -> impl Iterator<Item = Options> {
    (every_option().into_iter().chain(every_option_with_bear())).map(|options| Options {
        bias: false,
        ..options
    })
}

/// The numbers of frozen rows that are tried, of 211 tokens: few frozen rows, tiles of both parts (the largest set has 150
/// tokens), and few added rows.
const BASE_ROWS: [usize; 4] = [1, 100, 150, 208];

/// Every n-th option, of listed sets and of the whole vocabulary in chunks of any size.
fn options_in<T: Number>(step: usize) {
    let batch = Batch::new(24, 7);
    let row = batch.vocabulary.next_multiple_of(8);
    let chunks = [7 * row, 60 * row, usize::MAX];
    for (index, options) in options().enumerate().step_by(step) {
        let case = Case {
            base_rows: Some(BASE_ROWS[index % 4]),
            most_scores: chunks[index % 3],
            gradients: [
                Gradients::All,
                Gradients::All,
                Gradients::Direct,
                Gradients::Hidden,
                Gradients::None,
            ][index / 2 % 5],
            ..Case::new(&batch, &options)
        };
        case.assert_correct::<T>(&format!("option {index}"));
    }
}

fn every_seventh_option_in_f32() {
    options_in::<f32>(7);
}

fn some_options_in_f16() {
    options_in::<f16>(13);
}

fn some_options_in_bf16() {
    options_in::<bf16>(11);
}

fn parts_may_have_odd_widths_and_rows_that_lie_apart() {
    for (width, apart) in [(1, 0), (33, 0), (40, 3), (40, 8)] {
        let batch = Batch::new(width, 3);
        for (index, options) in options().step_by(23).enumerate() {
            let case = Case {
                base_rows: Some(BASE_ROWS[index % 4]),
                apart,
                ..Case::new(&batch, &options)
            };
            let what = format!("width {width}, {apart} apart");
            case.assert_correct::<bf16>(&what);
            case.assert_correct::<f32>(&what);
        }
    }
}

/// Over listed sets the sums are the same ones in the same order.
fn over_listed_sets_the_bits_are_those_of_a_head_in_one_part() {
    let batch = Batch::new(24, 7);
    let listed = options().filter(|options| !options.whole_vocabulary);
    for (index, options) in listed.enumerate().step_by(4) {
        let base_rows = BASE_ROWS[index / 4 % 4];
        let whole = Case::new(&batch, &options);
        let parts = Case {
            base_rows: Some(base_rows),
            ..whole
        };
        let [whole, parts] =
            [whole, parts].map(|case| case.run::<bf16>(&Emulator::default()).unwrap());
        assert_eq!(whole.loss, parts.loss);
        assert_eq!(whole.gradient, parts.gradient);
        let of_added = &whole.head_gradient[base_rows * batch.width..];
        assert_eq!(of_added, parts.head_gradient);
    }
}

/// No token of any set is added, or all are.
fn a_part_may_be_in_no_set() {
    let mut batch = Batch::new(9, 3);
    let (offsets, tokens) = batch.sets.as_raw().unwrap();
    let last = tokens.iter().max().unwrap() + 1;
    let moved = tokens.iter().map(|token| token + 300).collect();
    let moved = TokenSets::from_raw(offsets.to_vec(), moved).unwrap();
    let added: Vec<f64> = batch.head.iter().rev().copied().collect();
    batch.head.extend(added.into_iter().take(300 * 9));
    batch.head.resize(600 * 9, 0.25);
    batch.bias.resize(600, 0.0);
    batch.vocabulary = 600;
    let options = options().find(|options| !options.whole_vocabulary).unwrap();
    let none = Case {
        base_rows: Some(last as usize),
        ..Case::new(&batch, &options)
    };
    none.assert_correct::<f32>("no token is added");
    let found = none.run::<f32>(&Emulator::default()).unwrap();
    assert!(found.head_gradient.iter().all(|&entry| entry == 0.0));

    let rows = batch.rows.as_slice().iter().map(|row| candle_trie::Row {
        target: row.target + 300,
        ..*row
    });
    batch.rows = Rows::from_raw(batch.positions, rows.collect()).unwrap();
    batch.sets = moved;
    let all = Case {
        base_rows: Some(300),
        ..Case::new(&batch, &options)
    };
    all.assert_correct::<f32>("all tokens are added");
}

/// The kernel would write before the gradient.
#[test]
fn a_plan_for_other_rows_than_the_added_ones_is_refused() {
    let batch = Batch::new(8, 1);
    let options = options().next().unwrap();
    let rows = Case::new(&batch, &options).rows();
    let sets = batch.sets(&options);
    let gradients = LinearGradients::AddedRows {
        sets: &sets,
        first_token: 7,
    };
    let most = LinearPlan::MOST_SCORES;
    let plan = LinearPlan::new(rows, Element::F32, 8, gradients, &LIMITS, most).unwrap();
    let tensors = crate::plan::tensors(8);
    let (mut recorder, temperature) = (Recorder::default(), TemperaturePlan::at(1.0));
    // SAFETY: nothing is run.
    let refused = unsafe {
        plan.issue_forward(
            &mut recorder,
            &tensors,
            temperature,
            None,
            &Recorder::RESULTS,
        )
    };
    let words = refused.err().unwrap().to_string();
    assert!(
        words.contains("from row 7 on, but 0 rows are frozen"),
        "{words}"
    );
}

candle_trie_emulator::emulated_tests! {
    every_seventh_option_in_f32,
    some_options_in_f16,
    some_options_in_bf16,
    parts_may_have_odd_widths_and_rows_that_lie_apart,
    over_listed_sets_the_bits_are_those_of_a_head_in_one_part,
    a_part_may_be_in_no_set,
}
