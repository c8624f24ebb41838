//! Rows over the whole vocabulary: in chunks of any size, with every option.

use candle_trie::Rows;
use candle_trie_emulator::Emulator;
use half::{bf16, f16};

use crate::batch::{Batch, Options, every_option, every_option_with_bear};
use crate::device::{Case, Gradients};
use crate::emulated::sweeps_in_full;
use crate::number::Number;
use crate::shapes::batch;

fn options() -> impl Iterator<Item = Options> {
    every_option()
        .into_iter()
        .filter(|options| options.whole_vocabulary)
}

/// One row at a time, a few, all but a few, and all.
fn chunks(batch: &Batch) -> [usize; 4] {
    let row = batch.vocabulary.next_multiple_of(8);
    [1, 7 * row, 60 * row, usize::MAX]
}

/// Every n-th option.
fn options_in_chunks_in<T: Number>(step: usize) {
    let batch = Batch::new(24, 7);
    for (index, options) in options().enumerate().step_by(step) {
        let case = Case {
            most_scores: chunks(&batch)[index % 4],
            gradients: [
                Gradients::All,
                Gradients::Direct,
                Gradients::None,
                Gradients::All,
                Gradients::Hidden,
            ][index % 5],
            ..Case::new(&batch, &options)
        };
        case.assert_correct::<T>(&format!("option {index}"));
    }
}

/// In full sweeps; every third otherwise.
fn every_option_in_f32() {
    options_in_chunks_in::<f32>(if sweeps_in_full() { 1 } else { 3 });
}

fn every_third_option_in_f16() {
    options_in_chunks_in::<f16>(3);
}

fn every_third_option_in_bf16() {
    options_in_chunks_in::<bf16>(3);
}

fn odd_widths_in_every_chunk() {
    for width in [1, 33] {
        let batch = Batch::new(width, 3);
        for options in options().step_by(9) {
            for chunk in chunks(&batch).into_iter().take(3) {
                let case = Case {
                    most_scores: chunk,
                    ..Case::new(&batch, &options)
                };
                case.assert_correct::<bf16>(&format!("width {width}, {chunk}"));
            }
        }
    }
}

fn gradients_may_be_made_again() {
    let batch = Batch::new(24, 7);
    for (index, options) in options().enumerate().step_by(5) {
        let case = Case {
            most_scores: chunks(&batch)[index % 4],
            backward_passes: 2,
            ..Case::new(&batch, &options)
        };
        case.assert_correct::<bf16>(&format!("option {index}"));
    }
}

fn rows_are_weighed_when_all_chunks_have_their_scores() {
    let batch = Batch::new(24, 7);
    let whole = every_option_with_bear()
        .into_iter()
        .filter(|options| options.whole_vocabulary);
    for (index, options) in whole.enumerate().step_by(3) {
        let case = Case {
            most_scores: chunks(&batch)[index / 3 % 4],
            ..Case::new(&batch, &options)
        };
        case.assert_correct::<f32>(&format!("option {index} with BEAR"));
    }
}

/// A slice of a listed set has at most 2048.
fn a_slice_of_the_gradient_may_have_thousands_of_tokens() {
    let batch = batch(1, 5000, &[(5000, 2)]);
    for options in options().step_by(7) {
        Case::new(&batch, &options).assert_correct::<f32>("5000 tokens");
    }
}

fn no_row_gives_zeros() {
    let mut batch = Batch::new(9, 3);
    batch.rows = Rows::from_raw(batch.positions, Vec::new()).unwrap();
    for options in options().filter(|options| !options.weights).step_by(4) {
        Case::new(&batch, &options).assert_correct::<f32>("no row");
    }
}

/// Tables of its tokens would be uploaded with every batch.
fn the_head_gradient_needs_no_table() {
    let batch = Batch::new(24, 7);
    let options = options().next().unwrap();
    let outcome = Case::new(&batch, &options).run::<bf16>(&Emulator::default());
    let head_sums = outcome.unwrap().head_sums;
    for table in ["segments", "segment starts", "head tokens"] {
        assert_eq!(head_sums.traffic(table).loaded, 0, "{table}");
    }
}

candle_trie_emulator::emulated_tests! {
    every_option_in_f32,
    every_third_option_in_f16,
    every_third_option_in_bf16,
    odd_widths_in_every_chunk,
    gradients_may_be_made_again,
    rows_are_weighed_when_all_chunks_have_their_scores,
    a_slice_of_the_gradient_may_have_thousands_of_tokens,
    no_row_gives_zeros,
    the_head_gradient_needs_no_table,
}
