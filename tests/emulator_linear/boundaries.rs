//! Where the plan cuts a batch: around 16 and 64 tokens, 8 and 64 rows, 2,048 tokens of an item, the widths of packets
//! and of stages, and slices of what is summed over.

use candle_trie::launch::{DeviceLimits, Element, LinearGradients, LinearPass};
use candle_trie::{Convention, Reduction, Row, Rows, Temperature, TokenSets};
use half::{bf16, f16};

use crate::batch::{Batch, Options};
use crate::device::{Case, Gradients};
use crate::emulated::LIMITS;
use crate::number::Number;
use crate::shapes::{batch, options, temperatures};

fn check<T: Number>(batch: &Batch, gradients: Gradients, what: &str) {
    for options in temperatures() {
        let case = Case {
            gradients,
            ..Case::new(batch, &options)
        };
        case.assert_correct::<T>(what);
    }
}

fn sets_and_rows_on_either_side_of_a_fragment_and_of_an_item() {
    // Each of the sizes of a set once, each of the numbers of rows once.
    let sets = [
        (15, 7),
        (16, 8),
        (17, 9),
        (63, 5),
        (64, 6),
        (65, 4),
        (127, 63),
        (128, 64),
        (129, 65),
        (1, 3),
        (2, 1),
    ];
    let batch = batch(20, 600, &sets);
    check::<bf16>(&batch, Gradients::All, "boundaries");
    check::<f16>(&batch, Gradients::Direct, "boundaries");
    check::<f32>(&batch, Gradients::All, "boundaries");
}

fn thousands_of_tokens_and_hundreds_of_rows() {
    for (size, rows) in [
        (1000, 2),
        (2048, 1),
        (2049, 3),
        (5000, 1),
        (9, 128),
        (3, 300),
    ] {
        let batch = batch(16, 5100, &[(size, rows), (2, 1)]);
        let what = format!("{size} tokens, {rows} rows");
        check::<bf16>(&batch, Gradients::Hidden, &what);
        check::<f32>(&batch, Gradients::Direct, &what);
    }
}

fn widths_from_one_element_to_thousands() {
    for width in [1, 8, 15, 16, 17, 63, 65, 100, 576, 1000, 4096, 16_384] {
        let batch = batch(width, 30, &[(5, 2), (3, 1)]);
        let gradients = if width < 600 {
            Gradients::All
        } else {
            Gradients::Hidden
        };
        check::<bf16>(&batch, gradients, &format!("width {width}"));
        if width < 4096 {
            check::<f32>(&batch, gradients, &format!("width {width}"));
        }
    }
}

/// The same batch with one block and with many, whose items are cut into slices.
fn slices_add_up_to_the_whole() {
    let batch = batch(1024, 500, &[(130, 20), (4, 2)]);
    let mut seen = [false; 2];
    for multiprocessors in [1, 12] {
        let limits = DeviceLimits {
            multiprocessors,
            ..LIMITS
        };
        let options = &temperatures()[1];
        let case = Case {
            limits,
            gradients: Gradients::Hidden,
            ..Case::new(&batch, options)
        };
        let (rows, most) = (case.rows(), LinearPass::MOST_SCORES);
        let planned = LinearGradients::Hidden;
        let pass = LinearPass::new(rows, Element::Bf16, 1024, planned, &limits, most).unwrap();
        for (phase, seen) in pass.work(0).iter().zip(&mut seen) {
            *seen |= phase.iter().any(|of| of.slices > 1);
        }
        case.assert_correct::<bf16>(&format!("{multiprocessors} multiprocessors"));
    }
    assert!(seen[0], "{seen:?}");
}

/// Two thousand tokens of p = 2e-8 each, whose pull is all that the second column of the gradient has. Rounded to f16 by
/// itself each p is 0.
fn a_tail_of_small_probabilities_pulls_together_in_f16() {
    let tail = 2000;
    let mut head = [0.0, 1.0].repeat(tail + 1);
    head[..2].copy_from_slice(&[17.75, 0.0]);
    let batch = Batch {
        hidden: vec![1.0, 0.0],
        head,
        bias: vec![0.0; tail + 1],
        positions: 1,
        vocabulary: tail + 1,
        width: 2,
        sets: TokenSets::from_raw(vec![0, tail as u32 + 1], (0..=tail as u32).collect()).unwrap(),
        rows: Rows::from_raw(
            1,
            vec![Row {
                position: 0,
                set: 0,
                target: 0,
            }],
        )
        .unwrap(),
    };
    for whole_vocabulary in [false, true] {
        let options = Options {
            whole_vocabulary,
            convention: Convention {
                reduction: Reduction::Sum,
                times_temperature: false,
            },
            bias: false,
            ..options(Temperature::fixed(1.0))
        };
        for gradients in [Gradients::Direct, Gradients::All] {
            let case = Case {
                gradients,
                ..Case::new(&batch, &options)
            };
            case.assert_correct::<f16>("a tail");
        }
    }
}

candle_trie_emulator::emulated_tests! {
    sets_and_rows_on_either_side_of_a_fragment_and_of_an_item,
    thousands_of_tokens_and_hundreds_of_rows,
    widths_from_one_element_to_thousands,
    slices_add_up_to_the_whole,
    a_tail_of_small_probabilities_pulls_together_in_f16,
}
