//! How much is moved, and in how many launches.

use candle_trie::launch::{DeviceLimits, Element, LinearGradients, LinearPass};
use candle_trie::{AdaptiveStrategy, MaskedSoftmaxLoss, Scope, Temperature};
use candle_trie_emulator::{Emulator, Traffic};
use half::bf16;

use crate::batch::Batch;
use crate::device::{Case, Gradients, Outcome};
use crate::emulated::LIMITS;
use crate::shapes::{batch, options, temperatures};
use crate::support::Shape;

const WIDTH: usize = 128;
const ROW: u64 = 2 * WIDTH as u64;

/// Sets that take several items, one, and a part of one.
fn mixed() -> Batch {
    batch(WIDTH, 420, &[(290, 70), (2, 9), (5, 2), (33, 1)])
}

fn traced(case: Case) -> Outcome {
    case.run::<bf16>(&Emulator::default().traced()).unwrap()
}

fn assert_few_sectors(traffic: Traffic) {
    let waste = traffic.load_sectors as f64 / traffic.least_load_sectors as f64;
    assert!(waste <= 1.1, "{waste}");
}

fn each_head_row_is_loaded_once_an_item_and_phase() {
    let batch = mixed();
    for options in temperatures() {
        for gradients in [Gradients::Hidden, Gradients::None] {
            let case = Case {
                gradients,
                ..Case::new(&batch, &options)
            };
            let planned = match gradients {
                Gradients::None => LinearGradients::None,
                _ => LinearGradients::Hidden,
            };
            let (rows, most) = (case.rows(), LinearPass::MOST_SCORES);
            let pass = LinearPass::new(rows, Element::Bf16, WIDTH, planned, &LIMITS, most).unwrap();
            let [scores, gradient] = pass.work(0);
            let elements = |columns: u32, terms: u32| u64::from(columns) * u64::from(terms);
            let mut expected: u64 = scores.iter().map(|of| elements(of.columns, of.terms)).sum();
            expected += gradient
                .iter()
                .map(|of| elements(of.columns, of.terms))
                .sum::<u64>();
            if gradients == Gradients::Hidden {
                // The target's, for its part of the gradient.
                expected += (batch.rows.len() * WIDTH) as u64;
            }
            let outcome = traced(case);
            let head = outcome.forward.traffic("head");
            assert_eq!(head.loaded, 2 * expected, "{gradients:?}");
            assert_few_sectors(head);
            let states: u64 = scores.iter().map(|of| elements(of.rows, of.terms)).sum();
            let hidden = outcome.forward.traffic("hidden");
            assert_eq!(hidden.loaded, 2 * states);
            assert_few_sectors(hidden);
        }
    }
}

/// Operands of products lie so that their loads have none; what is left is of copies across the ends of lines, and of the
/// sums that warps exchange.
fn few_accesses_of_shared_memory_wait_for_a_bank() {
    for (tokens, rows) in [(256, 64), (300, 30), (40, 3)] {
        let batch = batch(256, 620, &[(tokens, rows)]);
        let fixed = options(Temperature::fixed(1.3));
        let outcome = traced(Case::new(&batch, &fixed));
        let shared = outcome.forward.shared;
        let accesses = (shared.loaded + shared.stored) / 128;
        let waits = shared.bank_conflicts as f64 / accesses as f64;
        assert!(waits < 0.2, "{waits} of {accesses} accesses of 128 bytes");
    }
}

fn a_fixed_temperature_costs_no_statistics() {
    let batch = mixed();
    let [fixed, adaptive] = temperatures();
    let stored = |options| {
        let outcome = traced(Case {
            gradients: Gradients::None,
            ..Case::new(&batch, options)
        });
        let forward = outcome.forward;
        (
            forward.traffic("records").loaded,
            forward.traffic("targets").loaded,
        )
    };
    // Once more by whoever adds up the statistics.
    let (fixed, adaptive) = (stored(&fixed), stored(&adaptive));
    assert!(
        fixed.0 < adaptive.0 && fixed.1 < adaptive.1,
        "{fixed:?}, {adaptive:?}"
    );
}

fn the_backward_pass_loads_and_stores_once() {
    let batch = mixed();
    let fixed = options(Temperature::fixed(1.3));
    let outcome = traced(Case::new(&batch, &fixed));
    let gradient = outcome.backward.traffic("gradient");
    let bytes = batch.positions as u64 * ROW;
    assert_eq!((gradient.stored, gradient.loaded), (bytes, 0));
    assert_eq!(gradient.store_sectors, bytes / 32);
    let unscaled = outcome.backward.traffic("unscaled");
    assert_eq!(unscaled.loaded, batch.rows.len() as u64 * 2 * ROW);
}

fn value_and_gradient_take_one_launch_and_store_once() {
    let batch = mixed();
    for options in temperatures() {
        let outcome = traced(Case {
            gradients: Gradients::Direct,
            ..Case::new(&batch, &options)
        });
        assert_eq!(outcome.launches, 1);
        let gradient = outcome.forward.traffic("gradient");
        assert_eq!(gradient.stored, batch.positions as u64 * ROW);
        assert_eq!(gradient.store_sectors, gradient.least_store_sectors);
    }
}

fn the_head_gradient_stores_each_token_once() {
    let batch = mixed();
    let fixed = options(Temperature::fixed(1.3));
    let outcome = traced(Case::new(&batch, &fixed));
    assert_eq!(outcome.launches, 3);
    let mut tokens: Vec<u32> = (0..4)
        .flat_map(|set| batch.sets.get(set).unwrap().iter().collect::<Vec<u32>>())
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    let bytes = tokens.len() as u64 * ROW;
    let gradient = outcome.head_sums.traffic("head gradient");
    assert_eq!((gradient.stored, gradient.loaded), (bytes, 0));
    assert_eq!(gradient.store_sectors, bytes / 32);
    let bias = outcome.head_sums.traffic("bias gradient");
    assert_eq!(bias.stored, 2 * tokens.len() as u64);
}

#[test]
fn the_books_batches_take_a_launch_forward_and_a_launch_backward() {
    let h100 = DeviceLimits {
        multiprocessors: 132,
        shared_bytes_per_block: 227 << 10,
        shared_bytes_per_multiprocessor: 228 << 10,
    };
    let adaptive = AdaptiveStrategy {
        scope: Scope::Branching,
        ..AdaptiveStrategy::default()
    };
    for shape in [Shape::books(), Shape::books_of_llama_3()] {
        for temperature in [Temperature::fixed(1.3), adaptive.into()] {
            let loss = MaskedSoftmaxLoss::new(shape.sets.clone(), temperature.clone()).unwrap();
            let rows = loss.linear_rows(&shape.rows).unwrap();
            let (gradients, most) = (LinearGradients::Hidden, LinearPass::MOST_SCORES);
            let pass = LinearPass::new(rows, Element::Bf16, 4096, gradients, &h100, most).unwrap();
            let adapts = matches!(temperature, Temperature::Adaptive(_));
            // The backward pass is one more.
            assert_eq!(pass.forward_launches_count(adapts), 1);
        }
    }
}

candle_trie_emulator::emulated_tests! {
    each_head_row_is_loaded_once_an_item_and_phase,
    few_accesses_of_shared_memory_wait_for_a_bank,
    a_fixed_temperature_costs_no_statistics,
    the_backward_pass_loads_and_stores_once,
    value_and_gradient_take_one_launch_and_store_once,
    the_head_gradient_stores_each_token_once,
}
