//! Sizes and layouts: odd, empty, one, long, strided, far.

use candle_trie::launch::{DeviceLimits, DevicePtr};
use candle_trie::{Convention, Row, Rows, Scope, Temperature, TokenSets, TokenTrie};
use candle_trie_emulator::{Emulator, Memory};
use half::{bf16, f16};

use crate::batch::{noise, rows_of, strategy};
use crate::device::{Case, GRADIENTS, Gradient};
use crate::number::Number;

/// Sets of these sizes, spread over the vocabulary.
fn sets(vocabulary: u32, sizes: &[u32]) -> TokenSets {
    let mut offsets = vec![0];
    let mut tokens = Vec::new();
    for (index, &size) in sizes.iter().enumerate() {
        let step = vocabulary / size;
        tokens.extend((0..size).map(|token| token * step + index as u32 % step));
        offsets.push(tokens.len() as u32);
    }
    TokenSets::from_raw(offsets, tokens).unwrap()
}

/// Every other position counts, over all sets in turn.
fn every_other(sets: &TokenSets, positions: usize) -> Rows {
    let count = sets.count().unwrap_or(1) as u32;
    let rows = (0..positions as u32).step_by(2).map(|position| {
        let set = position / 2 % count;
        let tokens: Vec<u32> = sets.get(set).unwrap().iter().collect();
        Row {
            position,
            set,
            target: tokens[position as usize * 7 % tokens.len()],
        }
    });
    Rows::from_raw(positions, rows.collect()).unwrap()
}

fn temperatures() -> [Temperature; 2] {
    [Temperature::fixed(1.3), strategy(Scope::Branching).into()]
}

fn every_width<T: Number>() {
    // Below a packet, packets and a part, whole tiles, more than a chunk of 512 packets.
    for (width, positions) in [(5, 9), (1003, 9), (1024, 5), (4163, 5)] {
        let largest = (width as u32).min(300);
        let sets = sets(width as u32, &[largest, 2, 1, 3, largest / 2]);
        let rows = every_other(&sets, positions);
        let logits = noise(width as u64, positions * width, 5.0);
        for temperature in temperatures() {
            for gradient in GRADIENTS {
                let case = Case::<T> {
                    temperature: temperature.clone(),
                    gradient,
                    ..Case::new(&sets, &rows, width, &logits)
                };
                case.assert_correct(&format!("width {width}"));
            }
        }
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

fn rows_may_lie_apart_and_the_gradient_begin_anywhere() {
    let width = 203;
    let sets = sets(width as u32, &[40, 7]);
    let rows = every_other(&sets, 6);
    let logits = noise(1, 6 * width, 5.0);
    for gradient in GRADIENTS {
        for (row_stride, gradient_offset) in [(208, 0), (211, 1), (204, 3)] {
            let case = Case::<bf16> {
                gradient,
                gradient_offset: match gradient {
                    Gradient::Fused | Gradient::Backward => gradient_offset,
                    _ => 0,
                },
                ..Case::new(&sets, &rows, width, &logits)
            };
            case.spread(row_stride).assert_correct("strided");
        }
    }
}

fn whole_vocabularies_need_not_fit_the_chip() {
    // Kept, kept by some temperatures only, and not.
    for (width, positions) in [(7, 5), (2051, 6), (9_001, 3)] {
        let sets = TokenSets::whole_vocabulary(width).unwrap();
        let rows = every_other(&sets, positions);
        let logits = noise(2, positions * width, 5.0);
        for temperature in temperatures() {
            for gradient in GRADIENTS {
                let case = Case::<f32> {
                    temperature: temperature.clone(),
                    gradient,
                    ..Case::new(&sets, &rows, width, &logits)
                };
                case.assert_correct(&format!("all of {width}"));
            }
        }
    }
}

fn a_block_may_keep_some_of_its_rows_and_not_others() {
    let width = 400;
    let sets = sets(width as u32, &[60, 25, 110]);
    let rows = every_other(&sets, 40);
    let logits = noise(6, 40 * width, 5.0);
    // Two blocks, each with room for some hundred logits.
    let limits = DeviceLimits {
        multiprocessors: 1,
        shared_bytes_per_block: 8 << 10,
        shared_bytes_per_multiprocessor: 8 << 10,
    };
    for temperature in temperatures() {
        for gradient in GRADIENTS {
            let case = Case::<f32> {
                temperature: temperature.clone(),
                gradient,
                limits,
                ..Case::new(&sets, &rows, width, &logits)
            };
            let waits = temperature != temperatures()[0];
            assert!(!(waits && case.run(&Emulator::default()).unwrap().caches_all_rows));
            case.assert_correct("several rows a block");
        }
    }
}

fn batches_with_nothing_in_them_give_zeros() {
    let sets = sets(11, &[4, 1]);
    let unary = [(0, 1, 1), (2, 1, 1)];
    for (positions, rows) in [(0, &[][..]), (3, &[][..]), (3, &unary[..])] {
        let rows = rows_of(positions, rows);
        let logits = noise(1, positions * 11, 5.0);
        for temperature in temperatures() {
            for convention in [Convention::fixed(), Convention::adaptive()] {
                for gradient in GRADIENTS {
                    let case = Case::<f32> {
                        temperature: temperature.clone(),
                        convention,
                        gradient,
                        ..Case::new(&sets, &rows, 11, &logits)
                    };
                    case.assert_correct(&format!("{positions} positions"));
                }
            }
        }
    }
}

fn rows_that_do_not_count_may_hold_anything() {
    let sets = sets(50, &[20, 1, 5]);
    let rows = rows_of(5, &[(0, 0, 0), (1, 1, 1), (3, 2, 2)]);
    let mut logits = noise(1, 5 * 50, 5.0);
    for position in [1, 2, 4] {
        logits[position * 50..(position + 1) * 50].fill(f64::NAN);
    }
    for gradient in GRADIENTS {
        let case = Case::<f32> {
            gradient,
            ..Case::new(&sets, &rows, 50, &logits)
        };
        case.assert_correct("NaN in rows that do not count");
    }
}

fn extremes_stay_finite_and_offsets_keep_their_precision() {
    let sets = sets(300, &[100, 30]);
    let rows = every_other(&sets, 8);
    for (offset, spread) in [(-1e4, 2.0), (1e4, 2.0), (0.0, 1e4), (0.0, 0.0)] {
        let logits: Vec<f64> = (noise(1, 8 * 300, spread).iter())
            .map(|logit| logit + offset)
            .collect();
        for temperature in temperatures() {
            let case = Case::<f32> {
                temperature: temperature.clone(),
                ..Case::new(&sets, &rows, 300, &logits)
            };
            case.assert_correct(&format!("{offset} ± {spread}"));
        }
    }
}

fn random_tries_of_items_are_those_of_the_definition() {
    for seed in 0..3u64 {
        let width = 60 + 37 * seed as usize;
        let digits = noise(seed, 400, 0.5);
        let paths: Vec<Vec<u32>> = (digits.chunks(8).map(|path| {
            // Few tokens at first, so that paths share prefixes; 0 ends each.
            let token = |(depth, digit): (usize, &f64)| {
                let choices = (3 + 20 * depth).min(width - 1) as f64;
                1 + ((digit + 0.5) * choices) as u32 % (width as u32 - 1)
            };
            let length = 2 + (path[7].abs() * 8.0) as usize;
            (path.iter().take(length).enumerate().map(token))
                .chain([0])
                .collect()
        }))
        .collect();
        let trie =
            TokenTrie::new(paths.iter().enumerate().map(|(id, path)| (id as u64, path))).unwrap();
        let length = paths.iter().map(Vec::len).max().unwrap() + 2;
        let labels: Vec<Vec<i64>> = (paths.iter().take(12))
            .map(|path| {
                let mut line = vec![-100; length - path.len()];
                line.extend(path.iter().map(|&token| i64::from(token)));
                line
            })
            .collect();
        let rows = Rows::from_unshifted(&trie, &labels).unwrap();
        let logits = noise(seed + 100, rows.positions() * width, 6.0);
        for temperature in [
            Temperature::fixed(0.7),
            strategy(Scope::Branching).into(),
            candle_trie::AdaptiveStrategy {
                allow_degenerate: true,
                ..strategy(Scope::Root)
            }
            .into(),
        ] {
            for gradient in [Gradient::Fused, Gradient::Backward] {
                let case = Case::<bf16> {
                    temperature: temperature.clone(),
                    convention: Convention::adaptive(),
                    gradient,
                    ..Case::new(trie.sets(), &rows, width, &logits)
                };
                case.assert_correct(&format!("trie {seed}, {temperature:?}"));
            }
        }
    }
}

fn every_way_to_a_gradient_gives_the_same_bits() {
    let sets = sets(1003, &[300, 2, 20]);
    let rows = every_other(&sets, 24);
    let logits = noise(9, 24 * 1003, 5.0);
    for temperature in temperatures() {
        let outcome = |gradient| {
            let case = Case::<f32> {
                temperature: temperature.clone(),
                gradient,
                ..Case::new(&sets, &rows, 1003, &logits)
            };
            case.run(&Emulator::default()).unwrap()
        };
        let [alone, fused, later] =
            [Gradient::None, Gradient::Fused, Gradient::Backward].map(outcome);
        for other in [&fused, &later] {
            assert_eq!(other.loss, alone.loss);
            assert_eq!(other.statistics, alone.statistics);
            assert_eq!(other.temperature, alone.temperature);
        }
        // Half of the gradient was asked for.
        let halves: Vec<f64> = fused.gradient.iter().map(|value| value / 2.0).collect();
        assert_eq!(later.gradient, halves);
    }
}

fn offsets_pass_two_to_the_thirty_one() {
    let width = 1003;
    let sets = sets(width as u32, &[300, 20]);
    let rows = every_other(&sets, 4);
    let logits = noise(1, 4 * width, 5.0);
    for gradient in [Gradient::FusedOverLogits, Gradient::BackwardOverLogits] {
        let case = |first_position| Case::<f32> {
            gradient,
            first_position,
            ..Case::new(&sets, &rows, width, &logits)
        };
        let near = case(0).run(&Emulator::default()).unwrap();
        let (first, case) = (5_000_000, case(5_000_000));
        let mut memory = Memory::new();
        let window = memory.upload("logits", &case.logits);
        let base = DevicePtr::new(window.address_as_window(first * width as u64));
        let far = case
            .run_on(&Emulator::default(), memory, window, base.unwrap())
            .unwrap();
        assert_eq!((far.loss, far.gradient), (near.loss, near.gradient));
    }
}

candle_trie_emulator::emulated_tests! {
    every_width_in_f32,
    every_width_in_f16,
    every_width_in_bf16,
    rows_may_lie_apart_and_the_gradient_begin_anywhere,
    whole_vocabularies_need_not_fit_the_chip,
    a_block_may_keep_some_of_its_rows_and_not_others,
    batches_with_nothing_in_them_give_zeros,
    rows_that_do_not_count_may_hold_anything,
    extremes_stay_finite_and_offsets_keep_their_precision,
    random_tries_of_items_are_those_of_the_definition,
    every_way_to_a_gradient_gives_the_same_bits,
    offsets_pass_two_to_the_thirty_one,
}
