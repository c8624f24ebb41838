//! Long ragged sets, in parts: of any length, with the target in any part, and with every option.

use candle_trie::launch::{DeviceLimits, Element, LinearForward};
use candle_trie::{MaskedSoftmaxLoss, Row, Rows, Temperature, TokenSets};
use candle_trie_emulator::Emulator;
use half::{bf16, f16};

use crate::batch::{Batch, every_option};
use crate::device::{Case, Outcome};
use crate::number::Number;
use crate::shapes::{numbers, options, temperatures};
use crate::support::{LLAMA_3_8B, MODELS, Shape};

/// A block to a multiprocessor, with so much shared memory.
fn chip(multiprocessors: u32, bytes: u32) -> DeviceLimits {
    DeviceLimits {
        multiprocessors,
        shared_bytes_per_block: bytes,
        shared_bytes_per_multiprocessor: bytes + (1 << 10),
    }
}

/// One row of each of these (tokens of the set, rank of the target).
fn batch(width: usize, rows: &[(usize, usize)]) -> Batch {
    let vocabulary = 3 * rows.iter().map(|&(size, _)| size).max().unwrap();
    let mut offsets = vec![0];
    let mut tokens = Vec::new();
    let mut labelled = Vec::new();
    for (index, &(size, rank)) in rows.iter().enumerate() {
        let step = vocabulary / size;
        let set = (0..size).map(|token| (token * step + index % step) as u32);
        labelled.push(Row {
            position: index as u32,
            set: index as u32,
            target: (rank * step + index % step) as u32,
        });
        tokens.extend(set);
        offsets.push(tokens.len() as u32);
    }
    Batch {
        hidden: numbers(1, rows.len() * width),
        head: numbers(2, vocabulary * width),
        bias: numbers(3, vocabulary),
        positions: rows.len(),
        vocabulary,
        width,
        sets: TokenSets::from_raw(offsets, tokens).unwrap(),
        rows: Rows::from_raw(rows.len(), labelled).unwrap(),
    }
}

fn run<T: Number>(case: &Case) -> Outcome {
    case.run::<T>(&Emulator::default()).unwrap()
}

/// A single row, on a device where four tokens are a part: from no part to many, each target.
fn every_length<T: Number>() {
    let fixed = options(Temperature::fixed(1.3));
    let limits = chip(16, 64 + 512 + 48 + 5 * 16);
    let mut parts = Vec::new();
    for (size, rank) in [
        (2, 1),
        (4, 0),
        (5, 0),
        (5, 4),
        (8, 3),
        (9, 4),
        (11, 10),
        (31, 17),
        (64, 0),
        (64, 40),
        (65, 64),
    ] {
        let batch = batch(16 / size_of::<T>() - 1, &[(size, rank)]);
        let case = Case {
            limits,
            ..Case::new(&batch, &fixed)
        };
        parts.push(run::<T>(&case).parts);
        case.assert_correct::<T>(&format!("{size} tokens, the target is {rank}"));
    }
    assert_eq!(parts, [0, 0, 2, 2, 2, 3, 3, 8, 16, 16, 9]);
}

fn every_length_in_f32() {
    every_length::<f32>();
}

fn every_length_in_f16() {
    every_length::<f16>();
}

fn every_length_in_bf16() {
    every_length::<bf16>();
}

/// Few multiprocessors make parts of several tiles; so little shared memory keeps no head row.
fn parts_may_have_many_tiles_and_rows_any_width() {
    let rows = [(80, 3), (61, 60), (60, 30), (33, 0), (3, 1), (2, 0)];
    for width in [33, 200] {
        let batch = batch(width, &rows);
        let mut seen = Vec::new();
        for (multiprocessors, bytes) in [(3, 4 << 10), (12, 4 << 10), (4, 900), (64, 16 << 10)] {
            for options in temperatures() {
                for with_gradient in [true, false] {
                    let case = Case {
                        limits: chip(multiprocessors, bytes),
                        with_gradient,
                        ..Case::new(&batch, &options)
                    };
                    seen.push(run::<f32>(&case).parts);
                    let what = format!("{width} wide, {multiprocessors} × {bytes}");
                    case.assert_correct::<f32>(&what);
                    case.assert_correct::<bf16>(&what);
                }
            }
        }
        assert!(
            seen.iter().filter(|&&parts| parts > 0).count() >= 8,
            "{seen:?}"
        );
    }
}

/// Rows with statistics alone, or without, are among those in parts.
fn options_in_parts<T: Number>(step: usize) {
    let batch = Batch::new(24, 7);
    let listed = every_option()
        .into_iter()
        .filter(|options| !options.whole_vocabulary);
    for (index, options) in listed.enumerate().step_by(step) {
        let case = Case {
            limits: chip(96, 2 << 10),
            with_gradient: index % 5 != 3,
            ..Case::new(&batch, &options)
        };
        assert!(run::<T>(&case).parts > 0, "option {index}");
        case.assert_correct::<T>(&format!("option {index}, in parts"));
    }
}

fn every_option_in_f32() {
    options_in_parts::<f32>(1);
}

fn every_third_option_in_f16() {
    options_in_parts::<f16>(3);
}

fn every_third_option_in_bf16() {
    options_in_parts::<bf16>(3);
}

/// The bias of a token, at an infinity.
fn with_bias(mut batch: Batch, tokens: std::ops::Range<usize>, bias: f64) -> Batch {
    let (_, listed) = batch.sets.as_raw().unwrap();
    for index in tokens {
        batch.bias[listed[index] as usize] = bias;
    }
    batch
}

fn scores_at_minus_infinity_weigh_nothing_in_whatever_part() {
    let fixed = options(Temperature::fixed(1.3));
    for (from, to, target) in [(0, 4, 30), (8, 12, 1), (28, 31, 0), (4, 31, 3), (0, 30, 30)] {
        let batch = with_bias(batch(8, &[(31, target)]), from..to, f64::NEG_INFINITY);
        let case = Case {
            limits: chip(16, 64 + 512 + 48 + 5 * 32),
            ..Case::new(&batch, &fixed)
        };
        let outcome = run::<f32>(&case);
        assert_eq!(outcome.parts, 8);
        assert!(outcome.loss[0].is_finite());
        case.assert_correct::<f32>(&format!("{from} to {to} at −∞"));
    }
}

/// So far from zero that squares of scores would lose the variance; the scores themselves are exact.
fn statistics_of_parts_are_sums_of_differences() {
    for options in temperatures() {
        let batch = with_bias(batch(8, &[(31, 17), (23, 22)]), 0..54, -10_000.0);
        let case = Case {
            limits: chip(16, 64 + 512 + 48 + 5 * 32),
            ..Case::new(&batch, &options)
        };
        assert!(run::<f32>(&case).parts > 8);
        case.assert_correct::<f32>("far from zero");
    }
}

fn a_score_at_infinity_gives_no_number_in_whatever_part() {
    let fixed = options(Temperature::fixed(1.3));
    for (token, target) in [(0, 30), (13, 14), (30, 0), (17, 17)] {
        let batch = with_bias(batch(8, &[(31, target)]), token..token + 1, f64::INFINITY);
        let outcome = run::<f32>(&Case {
            limits: chip(16, 64 + 512 + 48 + 5 * 32),
            ..Case::new(&batch, &fixed)
        });
        assert_eq!(outcome.parts, 8);
        assert!(outcome.loss[0].is_nan(), "{}", outcome.loss[0]);
        assert!(outcome.gradient.iter().all(|value| value.is_nan()));
    }
}

fn a_head_row_is_loaded_once_whichever_part_it_is_in() {
    let batch = batch(128, &[(40, 3), (31, 30), (2, 0)]);
    let fixed = options(Temperature::fixed(1.3));
    let case = Case {
        limits: chip(24, 2 << 10),
        ..Case::new(&batch, &fixed)
    };
    let outcome = case.run::<bf16>(&Emulator::default().traced()).unwrap();
    let (row, parts) = (2 * 128, outcome.parts as u64);
    assert!(parts >= 16, "{parts}");
    let head = outcome.forward.traffic("head");
    // The targets of the two rows in parts once more.
    assert_eq!(head.loaded, (40 + 31 + 2 + 2) * row);
    let waste = head.load_sectors as f64 / head.least_load_sectors as f64;
    assert!(waste <= 1.1, "{waste}");
    assert_eq!(outcome.forward.traffic("hidden").loaded, (parts + 1) * row);
    // A gradient a part, and the row's.
    let unscaled = outcome.forward.traffic("unscaled");
    assert_eq!(unscaled.loaded, parts * 2 * row);
    assert_eq!(unscaled.stored, (parts + 3) * 2 * row);
}

const H100: DeviceLimits = DeviceLimits {
    multiprocessors: 132,
    shared_bytes_per_block: 227 << 10,
    shared_bytes_per_multiprocessor: 228 << 10,
};

/// Of a batch's head rows, at most, in bf16 and in f32.
fn longest_chains(shape: &Shape) -> [u32; 2] {
    let fixed = Temperature::fixed(1.3);
    let loss = MaskedSoftmaxLoss::new(shape.sets.clone(), fixed.clone()).unwrap();
    let rows = loss.linear_rows(&shape.rows, |_| true).unwrap();
    let given = rows.next(&fixed).unwrap();
    [Element::Bf16, Element::F32].map(|element| {
        let chains = MODELS.iter().chain([&LLAMA_3_8B]).map(|model| {
            let plan = LinearForward::new(&rows, element, model.hidden, given, true, &H100);
            plan.unwrap().longest_chain()
        });
        chains.max().unwrap()
    })
}

/// Llama-3-8B's sets of 71 tokens are many tiles of head rows, which were one block's when a row was.
#[test]
fn no_block_takes_many_tiles_one_after_another() {
    assert_eq!(longest_chains(&Shape::books()), [2, 3]);
    assert_eq!(longest_chains(&Shape::books_of_llama_3()), [2, 3]);
}

candle_trie_emulator::emulated_tests! {
    every_length_in_f32,
    every_length_in_f16,
    every_length_in_bf16,
    parts_may_have_many_tiles_and_rows_any_width,
    every_option_in_f32,
    every_third_option_in_f16,
    every_third_option_in_bf16,
    scores_at_minus_infinity_weigh_nothing_in_whatever_part,
    statistics_of_parts_are_sums_of_differences,
    a_score_at_infinity_gives_no_number_in_whatever_part,
    a_head_row_is_loaded_once_whichever_part_it_is_in,
}
