//! Sizes and layouts: odd, empty, one, long, apart.

use candle_trie::launch::{DeviceLimits, Element, LinearGradients, LinearPlan};
use candle_trie::{
    AdaptiveStrategy, Convention, Error, Row, Rows, Scope, Temperature, TokenSets, TokenTrie,
};
use candle_trie_emulator::Emulator;
use half::{bf16, f16};

use crate::batch::{Batch, Options};
use crate::device::{Case, Gradients};
use crate::emulated::LIMITS;
use crate::number::Number;

pub fn options(temperature: impl Into<Temperature>) -> Options {
    Options {
        whole_vocabulary: false,
        temperature: temperature.into(),
        convention: Convention::fixed(),
        bias: true,
        weights: false,
        bear: None,
    }
}

pub fn temperatures() -> [Options; 2] {
    let adaptive = AdaptiveStrategy {
        scope: Scope::Branching,
        alpha: 0.5,
        ..AdaptiveStrategy::default()
    };
    [options(Temperature::fixed(1.3)), options(adaptive)]
}

/// Numbers that every type holds exactly.
pub fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 58) as f64 / 32.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A batch over sets of these sizes, spread over the vocabulary, with this many rows of each, all
/// mixed; every fifth position does not count.
pub fn batch(width: usize, vocabulary: usize, sets: &[(usize, usize)]) -> Batch {
    let mut offsets = vec![0];
    let mut tokens = Vec::new();
    for (index, &(size, _)) in sets.iter().enumerate() {
        let step = vocabulary / size;
        tokens.extend((0..size).map(|token| (token * step + index % step) as u32));
        offsets.push(tokens.len() as u32);
    }
    let most = sets.iter().map(|&(_, rows)| rows).max().unwrap_or(0);
    let mut rows = Vec::new();
    let mut position = 0;
    for turn in 0..most {
        for (set, &(size, count)) in sets.iter().enumerate() {
            position += u32::from(position % 5 == 3);
            if turn < count {
                let rank = turn * 7 % size;
                rows.push(Row {
                    position,
                    set: set as u32,
                    target: tokens[offsets[set] as usize + rank],
                });
                position += 1;
            }
        }
    }
    let positions = position as usize + 1;
    Batch {
        hidden: numbers(1, positions * width),
        head: numbers(2, vocabulary * width),
        bias: numbers(3, vocabulary),
        positions,
        vocabulary,
        width,
        sets: TokenSets::from_raw(offsets, tokens).unwrap(),
        rows: Rows::from_raw(positions, rows).unwrap(),
    }
}

fn check<T: Number>(batch: &Batch, what: &str) {
    for options in temperatures() {
        for gradients in [Gradients::All, Gradients::None] {
            let case = Case {
                gradients,
                ..Case::new(batch, &options)
            };
            case.assert_correct::<T>(what);
        }
    }
}

fn every_width<T: Number>() {
    // Below a packet, odd, whole packets of one type and not of the other, more than the threads.
    for width in [1, 7, 20, 33, 64, 264] {
        // A group, and ragged sets of few and of many rows.
        let batch = batch(width, 220, &[(90, 7), (2, 9), (1, 3), (5, 2), (33, 1)]);
        check::<T>(&batch, &format!("width {width}"));
    }
}

fn every_width_in_f32() {
    every_width::<f32>();
}

fn every_width_in_f16() {
    every_width::<f16>();
}

fn every_width_in_bf16() {
    every_width::<bf16>();
}

fn thousands_of_columns_go_several_to_a_thread() {
    let batch = batch(4104, 40, &[(20, 2), (3, 2)]);
    check::<bf16>(&batch, "wide");
    check::<f32>(&batch, "wide");
}

fn rows_may_lie_apart_and_begin_anywhere() {
    let batch = batch(40, 200, &[(90, 6), (9, 4)]);
    for options in temperatures() {
        for apart in [1, 3, 8] {
            let case = Case {
                apart,
                ..Case::new(&batch, &options)
            };
            case.assert_correct::<bf16>(&format!("{apart} apart"));
            case.assert_correct::<f32>(&format!("{apart} apart"));
        }
    }
}

fn groups_may_have_one_row_and_sets_one_token() {
    // A single row of 600 tokens is a group; so are 512 rows of one token, with nothing but
    // statistics.
    check::<bf16>(&batch(16, 700, &[(600, 1), (3, 1)]), "one row");
    let unary = batch(8, 20, &[(1, 520), (4, 1)]);
    let marked = AdaptiveStrategy {
        scope: Scope::Root,
        allow_degenerate: true,
        ..AdaptiveStrategy::default()
    };
    Case::new(&unary, &options(marked)).assert_correct::<f32>("one token");
}

/// A device of so many multiprocessors, each with 1 KiB more than a block may ask for.
fn device(multiprocessors: u32, shared_bytes_per_block: u32) -> DeviceLimits {
    DeviceLimits {
        multiprocessors,
        shared_bytes_per_block,
        shared_bytes_per_multiprocessor: shared_bytes_per_block + (1 << 10),
    }
}

/// The least shared memory of a block that a plan accepts, in bytes: a multiple of the 128 that
/// multiprocessors give out.
const LEAST: u32 = 61_312;

/// The H100 has two blocks to a multiprocessor, the RTX 4090 one, and the smallest chip hardly enough
/// memory for that.
fn stages_are_as_large_as_the_chip_allows() {
    let batch = batch(256, 120, &[(60, 1), (37, 2), (2, 3), (1, 2), (80, 70)]);
    for limits in [
        device(2, 227 << 10),
        device(3, 99 << 10),
        device(4, 61 << 10),
        device(5, LEAST),
    ] {
        for options in temperatures() {
            let case = Case {
                limits,
                ..Case::new(&batch, &options)
            };
            let what = format!("{} bytes", limits.shared_bytes_per_block);
            case.assert_correct::<f32>(&what);
            case.assert_correct::<bf16>(&what);
        }
    }
}

#[test]
fn a_chip_that_is_too_small_is_refused() {
    let batch = batch(8, 20, &[(2, 3)]);
    let rows = Case::new(&batch, &options(Temperature::fixed(1.3))).rows();
    let plan = |limits: &DeviceLimits| {
        let (rows, most) = (rows.clone(), LinearPlan::MOST_SCORES);
        LinearPlan::new(rows, Element::F32, 8, LinearGradients::Hidden, limits, most)
    };
    assert!(plan(&device(2, LEAST)).is_ok());
    for limits in [device(2, LEAST - 1), device(0, 99 << 10)] {
        assert!(matches!(
            plan(&limits),
            Err(Error::Unsupported { what: "device", .. })
        ));
    }
}

fn batches_with_nothing_in_them_give_zeros() {
    let sets = [(6, 0), (1, 2)];
    for sets in [&sets[..1], &sets[..]] {
        let batch = batch(9, 30, sets);
        for options in temperatures() {
            for convention in [Convention::fixed(), Convention::adaptive()] {
                let options = Options {
                    convention,
                    ..options.clone()
                };
                let case = Case::new(&batch, &options);
                let outcome = case.run::<bf16>(&Emulator::default()).unwrap();
                assert_eq!(outcome.loss, [0.0]);
                assert!(outcome.gradient.iter().all(|&value| value == 0.0));
                assert_eq!(outcome.gradient.len(), batch.positions * 9);
                assert!(outcome.head_gradient.iter().all(|&value| value == 0.0));
                case.assert_correct::<f32>("nothing");
            }
        }
    }
}

fn rows_that_do_not_count_may_hold_anything() {
    let mut batch = batch(24, 200, &[(90, 6), (1, 3), (4, 2)]);
    let counting: Vec<usize> = (batch.rows.as_slice().iter())
        .filter(|row| row.set != 1)
        .map(|row| row.position as usize)
        .collect();
    for (position, hidden) in batch.hidden.chunks_mut(24).enumerate() {
        if !counting.contains(&position) {
            hidden.fill(f64::NAN);
        }
    }
    let options = options(Temperature::fixed(0.9));
    let outcome = Case::new(&batch, &options)
        .run::<f32>(&Emulator::default())
        .unwrap();
    assert!(outcome.loss[0].is_finite());
    assert!(outcome.gradient.iter().all(|value| value.is_finite()));
    assert!(outcome.head_gradient.iter().all(|value| value.is_finite()));
}

fn a_bias_may_have_a_gradient_alone() {
    for width in [8, 9, 40] {
        let batch = batch(width, 200, &[(90, 6), (9, 3), (50, 1)]);
        let options = options(Temperature::fixed(0.9));
        let case = Case {
            with_head_gradient: false,
            ..Case::new(&batch, &options)
        };
        case.assert_correct::<f32>("bias alone");
        case.assert_correct::<f16>("bias alone");
    }
}

fn a_token_of_many_sets_gets_the_sum_of_all() {
    // Every set holds token 0: groups, ragged sets of many rows and of one.
    let sets: Vec<(usize, usize)> = (0..12)
        .map(|set| (40 - 3 * set, if set < 6 { 20 - set } else { 1 }))
        .collect();
    let mut batch = batch(20, 120, &sets);
    let (offsets, tokens) = batch.sets.as_raw().unwrap();
    let (offsets, mut tokens) = (offsets.to_vec(), tokens.to_vec());
    let first_of_each = &offsets[..offsets.len() - 1];
    let targets: Vec<u32> = (batch.rows.as_slice().iter())
        .map(|row| {
            batch
                .sets
                .get(row.set)
                .unwrap()
                .position(row.target)
                .unwrap() as u32
        })
        .collect();
    for &first in first_of_each {
        tokens[first as usize] = 0;
    }
    let rows = (batch.rows.as_slice().iter().zip(targets)).map(|(row, rank)| Row {
        target: tokens[(offsets[row.set as usize] + rank) as usize],
        ..*row
    });
    batch.rows = Rows::from_raw(batch.positions, rows.collect()).unwrap();
    batch.sets = TokenSets::from_raw(offsets, tokens).unwrap();
    check::<f32>(&batch, "one token in all sets");
    check::<bf16>(&batch, "one token in all sets");
}

fn extremes_stay_finite() {
    for scale in [0.0, 64.0, 1024.0] {
        let mut batch = batch(32, 200, &[(90, 6), (9, 3), (50, 1)]);
        for value in &mut batch.hidden {
            *value *= scale;
        }
        for options in temperatures() {
            for limits in [LIMITS, device(1, 61 << 10)] {
                let case = Case {
                    limits,
                    ..Case::new(&batch, &options)
                };
                case.assert_correct::<f32>(&format!("times {scale}"));
            }
        }
    }
}

fn random_tries_of_items_are_those_of_the_definition() {
    for seed in 1..3u64 {
        let vocabulary = 60 + 37 * seed as usize;
        let digits = numbers(seed, 400);
        let paths: Vec<Vec<u32>> = (digits.chunks(8))
            .map(|path| {
                // Few tokens at first, so that paths share prefixes; 0 ends each.
                let token = |(depth, digit): (usize, &f64)| {
                    let choices = (3 + 20 * depth).min(vocabulary - 1) as f64;
                    1 + ((digit + 1.0) / 2.0 * choices) as u32 % (vocabulary as u32 - 1)
                };
                let length = 2 + (path[7].abs() * 4.0) as usize;
                let tokens = path.iter().take(length).enumerate().map(token);
                tokens.chain([0]).collect()
            })
            .collect();
        let items = paths.iter().enumerate().map(|(id, path)| (id as u64, path));
        let trie = TokenTrie::new(items).unwrap();
        let length = paths.iter().map(Vec::len).max().unwrap() + 2;
        let labels: Vec<Vec<i64>> = (paths.iter().take(20))
            .map(|path| {
                let mut line = vec![-100; length - path.len()];
                line.extend(path.iter().map(|&token| i64::from(token)));
                line
            })
            .collect();
        let rows = Rows::from_unshifted(&trie, &labels).unwrap();
        let (positions, width) = (rows.positions(), 17 + seed as usize);
        let batch = Batch {
            hidden: numbers(seed + 10, positions * width),
            head: numbers(seed + 20, vocabulary * width),
            bias: numbers(seed + 30, vocabulary),
            positions,
            vocabulary,
            width,
            sets: trie.sets().clone(),
            rows,
        };
        check::<bf16>(&batch, &format!("trie {seed}"));
    }
}

#[test]
fn a_width_that_no_kernel_takes_is_refused_by_what_is_wrong_with_it() {
    let batch = batch(8, 20, &[(2, 3)]);
    let fixed = options(Temperature::fixed(1.3));
    let rows = Case::new(&batch, &fixed).rows();
    let of_width = |width| {
        let (rows, most) = (rows.clone(), LinearPlan::MOST_SCORES);
        let pass = LinearPlan::new(
            rows,
            Element::F32,
            width,
            LinearGradients::Hidden,
            &LIMITS,
            most,
        );
        pass.err()
    };
    assert!(matches!(
        of_width(0),
        Some(Error::Unsupported {
            what: "hidden states",
            ..
        })
    ));
    assert!(of_width(1 << 24).is_none());
    assert!(matches!(
        of_width((1 << 24) + 1),
        Some(Error::TooLarge { .. })
    ));
}

candle_trie_emulator::emulated_tests! {
    every_width_in_f32,
    every_width_in_f16,
    every_width_in_bf16,
    thousands_of_columns_go_several_to_a_thread,
    rows_may_lie_apart_and_begin_anywhere,
    groups_may_have_one_row_and_sets_one_token,
    stages_are_as_large_as_the_chip_allows,
    batches_with_nothing_in_them_give_zeros,
    rows_that_do_not_count_may_hold_anything,
    a_bias_may_have_a_gradient_alone,
    a_token_of_many_sets_gets_the_sum_of_all,
    extremes_stay_finite,
    random_tries_of_items_are_those_of_the_definition,
}
