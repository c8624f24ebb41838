//! Sizes on either side of every number at which a plan cuts, pads or shares out work, in every element
//! type, with and without each gradient, on a device of one block, a few and as many as an H100 has.

use candle_trie::launch::DeviceLimits;
use candle_trie_emulator::Emulator;
use half::{bf16, f16};

use crate::batch::{Batch, Options};
use crate::device::{Case, Gradients};
use crate::emulated::{LIMITS, sweeps_in_full};
use crate::number::Number;
use crate::shapes::{batch, temperatures};

/// A width, and sets of so many tokens that have so many rows.
///
/// Tokens: fragments end at 16, items of scores at 64, items of the gradient at 2048. Rows: fragments end at
/// 8, items at 64; warps share the errors of 8, 16, 32 and 64. Widths: a packet is of 4 or 8 elements,
/// fragments end at 16, slices of the scores begin at multiples of 64. Columns of a gradient's item end at
/// 1024 for 8 rows, 512 for 16, 256 for 32, 128 for 64, or where a stage is full.
const SHAPES: [(usize, &[(usize, usize)]); 13] = [
    (1, &[(2, 1), (15, 7), (16, 8), (17, 9)]),
    (8, &[(63, 63), (64, 64), (65, 65)]),
    (15, &[(128, 9), (1, 128), (2049, 1)]),
    (16, &[(2048, 8), (2, 300)]),
    (17, &[(5000, 7), (129, 8)]),
    (63, &[(1000, 1), (17, 65)]),
    (64, &[(129, 128), (127, 9)]),
    (65, &[(2049, 9), (16, 64)]),
    (100, &[(15, 300), (129, 63)]),
    (576, &[(128, 65), (2, 8)]),
    (1000, &[(129, 7), (130, 2)]),
    (4096, &[(17, 33), (128, 1)]),
    (16384, &[(16, 9), (17, 1)]),
];

/// Logits stay small, whatever the width.
fn batch_of((width, sets): (usize, &[(usize, usize)])) -> Batch {
    let vocabulary = sets.iter().map(|&(tokens, _)| tokens).max().unwrap();
    let mut batch = batch(width, vocabulary, sets);
    let scale = (1.0 / (width as f64).sqrt().max(8.0)).log2().round().exp2() * 8.0;
    for value in &mut batch.hidden {
        *value *= scale;
    }
    batch
}

/// One block; a few, with what an RTX 4090 has; and the slices of an H100 in a grid of a few blocks.
fn devices() -> [(DeviceLimits, u32); 3] {
    let one = DeviceLimits {
        multiprocessors: 1,
        ..LIMITS
    };
    let h100 = DeviceLimits {
        multiprocessors: 132,
        shared_bytes_per_block: 227 << 10,
        shared_bytes_per_multiprocessor: 228 << 10,
    };
    [(one, 1), (LIMITS, 4), (h100, 5)]
}

const GRADIENTS: [Gradients; 4] = [
    Gradients::All,
    Gradients::Direct,
    Gradients::Hidden,
    Gradients::None,
];

/// Every shape, of which `turn` says with what. An element type has each on one device, and the three types on all. In full sweeps an
/// element type has them on every device, but for the wide ones, which take the emulator long.
fn every_boundary<T: Number>(turn: usize) {
    for (index, shape) in SHAPES.into_iter().enumerate() {
        let batch = batch_of(shape);
        for (device, (limits, most_blocks)) in devices().into_iter().enumerate() {
            if (shape.0 >= 1000 || !sweeps_in_full()) && device != (turn + index) % 3 {
                continue;
            }
            let turn = turn + index + device;
            let options = Options {
                bias: !turn.is_multiple_of(3),
                ..temperatures()[(turn / 2) % 2].clone()
            };
            let case = Case {
                limits,
                most_blocks,
                gradients: GRADIENTS[turn % 4],
                ..Case::new(&batch, &options)
            };
            case.assert_correct::<T>(&format!("{shape:?} on device {device}"));
        }
    }
}

fn every_boundary_in_f32() {
    every_boundary::<f32>(0);
}

fn every_boundary_in_f16() {
    every_boundary::<f16>(1);
}

fn every_boundary_in_bf16() {
    every_boundary::<bf16>(2);
}

/// A driver may hold fewer blocks than a plan is for: each then takes several items, and adds up the slices
/// of more.
fn results_are_of_the_plan_and_not_of_how_many_blocks_there_are() {
    let batch = batch_of((1280, &[(300, 20), (2, 3)]));
    let [_, options] = temperatures();
    let (limits, _) = devices()[2];
    let of_blocks = |most_blocks| {
        let case = Case {
            limits,
            most_blocks,
            gradients: Gradients::Hidden,
            ..Case::new(&batch, &options)
        };
        let outcome = case.run::<bf16>(&Emulator::with_seed(1)).unwrap();
        let (scores, gradient) = outcome.phases();
        for items in [scores, gradient] {
            assert!(items.iter().any(|item| item.slices > 2));
        }
        assert!(outcome.launches[0].blocks <= most_blocks);
        let mut bits = outcome.loss;
        bits.push(outcome.temperature);
        bits.extend(outcome.gradient);
        bits
    };
    let alone = of_blocks(1);
    for blocks in [3, 8] {
        assert_eq!(of_blocks(blocks), alone, "{blocks} blocks");
    }
}

candle_trie_emulator::emulated_tests! {
    results_are_of_the_plan_and_not_of_how_many_blocks_there_are,
    every_boundary_in_f32,
    every_boundary_in_f16,
    every_boundary_in_bf16,
}
