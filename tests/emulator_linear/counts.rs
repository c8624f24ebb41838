//! How much is moved, and in how many launches.

use candle_trie::launch::{
    DeviceLimits, Element, LinearForward, LinearGather, LinearHeadGradient, LinearShares,
};
use candle_trie::{AdaptiveStrategy, MaskedSoftmaxLoss, Scope, Temperature};
use candle_trie_emulator::{Emulator, Traffic};
use half::bf16;

use crate::batch::Batch;
use crate::device::{Case, Outcome};
use crate::shapes::{batch, options};
use crate::support::Shape;

const WIDTH: usize = 128;

/// A group of 90 tokens, and ragged sets.
fn mixed() -> Batch {
    batch(WIDTH, 220, &[(90, 7), (2, 9), (5, 2), (33, 1)])
}

fn ragged_tokens(batch: &Batch) -> u64 {
    let sizes = batch
        .rows
        .as_slice()
        .iter()
        .map(|row| batch.sets.get(row.set).unwrap().len());
    sizes
        .filter(|&size| size < 90)
        .map(|size| size as u64)
        .sum()
}

fn traced(case: Case) -> Outcome {
    case.run::<bf16>(&Emulator::default().traced()).unwrap()
}

fn assert_few_sectors(traffic: Traffic) {
    let waste = traffic.load_sectors as f64 / traffic.least_load_sectors as f64;
    assert!(waste <= 1.1, "{waste}");
}

fn a_head_row_is_loaded_once_where_its_set_fits() {
    let batch = mixed();
    let fixed = options(Temperature::fixed(1.3));
    for with_gradient in [true, false] {
        let outcome = traced(Case {
            with_gradient,
            ..Case::new(&batch, &fixed)
        });
        assert!(outcome.keeps_sets);
        let head = outcome.forward.traffic("head");
        assert_eq!(head.loaded, ragged_tokens(&batch) * 2 * WIDTH as u64);
        assert_few_sectors(head);
        let hidden = outcome.forward.traffic("hidden");
        let ragged = batch
            .rows
            .as_slice()
            .iter()
            .filter(|row| row.set != 0)
            .count();
        assert_eq!(hidden.loaded, (ragged * 2 * WIDTH) as u64);
        // The group's own, once.
        let gathered = outcome.gather.traffic("head");
        assert_eq!(gathered.loaded, 90 * 2 * WIDTH as u64);
        assert_few_sectors(gathered);
    }
}

fn a_head_row_is_loaded_once_a_tile_and_the_target_once_more() {
    let batch = mixed();
    let fixed = options(Temperature::fixed(1.3));
    // Three or four head rows.
    let limits = DeviceLimits {
        multiprocessors: 2,
        shared_bytes_per_block: 2 << 10,
        shared_bytes_per_multiprocessor: 3 << 10,
    };
    let outcome = traced(Case {
        limits,
        ..Case::new(&batch, &fixed)
    });
    assert!(outcome.keeps_tiles && !outcome.keeps_sets);
    let (head, tokens) = (outcome.forward.traffic("head"), ragged_tokens(&batch));
    let row = 2 * WIDTH as u64;
    let long_rows = batch
        .rows
        .as_slice()
        .iter()
        .filter(|row| row.set > 1)
        .count() as u64;
    assert!(head.loaded >= tokens * row);
    assert!(
        head.loaded <= (tokens + long_rows) * row,
        "{} of {tokens} rows",
        head.loaded / row
    );
    assert_few_sectors(head);
}

fn statistics_cost_one_more_look_where_the_temperature_waits_for_them() {
    let batch = mixed();
    let adaptive = options(AdaptiveStrategy {
        scope: Scope::Branching,
        ..AdaptiveStrategy::default()
    });
    let outcome = traced(Case::new(&batch, &adaptive));
    for pass in [&outcome.statistics_pass, &outcome.forward] {
        let head = pass.traffic("head");
        assert_eq!(head.loaded, ragged_tokens(&batch) * 2 * WIDTH as u64);
    }
}

fn the_backward_pass_loads_and_stores_once() {
    let batch = mixed();
    let fixed = options(Temperature::fixed(1.3));
    let outcome = traced(Case::new(&batch, &fixed));
    let gradient = outcome.backward.traffic("gradient");
    let bytes = (batch.positions * WIDTH * 2) as u64;
    assert_eq!((gradient.stored, gradient.loaded), (bytes, 0));
    assert_eq!(gradient.store_sectors, bytes / 32);
    let unscaled = outcome.backward.traffic("unscaled");
    assert_eq!(unscaled.loaded, (batch.rows.len() * WIDTH * 4) as u64);
}

fn the_head_gradient_looks_once_more_at_ragged_rows_and_sums_each_token_once() {
    let batch = mixed();
    let fixed = options(Temperature::fixed(1.3));
    let outcome = traced(Case::new(&batch, &fixed));
    let ragged = ragged_tokens(&batch);
    let head = outcome.errors.traffic("head");
    assert_eq!(head.loaded, ragged * 2 * WIDTH as u64);
    assert_few_sectors(head);
    let mut tokens: Vec<u32> = (0..4)
        .flat_map(|set| batch.sets.get(set).unwrap().iter().collect::<Vec<u32>>())
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    let bytes = (tokens.len() * WIDTH * 2) as u64;
    let gradient = outcome.head_sums.traffic("head gradient");
    assert_eq!((gradient.stored, gradient.loaded), (bytes, 0));
    assert_eq!(gradient.store_sectors, bytes / 32);
    let bias = outcome.head_sums.traffic("bias gradient");
    assert_eq!(bias.stored, 2 * tokens.len() as u64);
    // H + 1 columns in whole packets.
    let row = 4 * (WIDTH as u64 + 8);
    let products = outcome.head_sums.traffic("products");
    assert_eq!(products.loaded, 90 * row);
    let scaled = outcome.head_sums.traffic("scaled");
    assert_eq!(scaled.loaded, ragged * row);
}

fn a_frozen_head_leaves_nothing_of_the_head_to_gather() {
    let batch = mixed();
    let fixed = options(Temperature::fixed(1.3));
    let outcome = traced(Case {
        frozen: true,
        ..Case::new(&batch, &fixed)
    });
    assert_eq!(outcome.gather.traffic("head").loaded, 0);
    assert_eq!(
        outcome.gather.traffic("hidden").loaded,
        7 * 2 * WIDTH as u64
    );
}

#[test]
fn a_frozen_head_takes_a_dozen_launches_on_the_books_batches() {
    for shape in [Shape::books(), Shape::books_of_llama_3()] {
        takes_a_dozen_launches(&shape);
    }
}

fn takes_a_dozen_launches(shape: &Shape) {
    let h100 = DeviceLimits {
        multiprocessors: 132,
        shared_bytes_per_block: 227 << 10,
        shared_bytes_per_multiprocessor: 228 << 10,
    };
    let adaptive = AdaptiveStrategy {
        scope: Scope::Branching,
        ..AdaptiveStrategy::default()
    };
    for temperature in [Temperature::fixed(1.3), adaptive.into()] {
        let loss = MaskedSoftmaxLoss::new(shape.sets.clone(), temperature.clone()).unwrap();
        for frozen in [true, false] {
            let rows = loss.linear_rows(&shape.rows, |_| frozen).unwrap();
            let temperature = rows.next(&temperature).unwrap();
            let plan = LinearForward::new(&rows, Element::Bf16, 4096, temperature, true, &h100);
            // The backward pass is one more.
            let launches = plan.unwrap().launches() + 1;
            assert!(launches <= 12, "{launches}");
            let shares = LinearShares::new(&rows, &shape.sets);
            let head = LinearHeadGradient::new(&rows, &shares, Element::Bf16, 4096, &h100);
            let launches = head.unwrap().unwrap().launches();
            assert!(launches <= 6, "{launches} for the head's gradient");
            assert_eq!(shares.tokens() as usize, shape.distinct_tokens().len());
            let in_groups: usize = (rows.grouped_sets())
                .map(|set| {
                    let rows = shape.rows.as_slice().iter().filter(|row| row.set == set);
                    rows.count() * shape.set_size(set)
                })
                .sum();
            let share = in_groups as f64 / shape.branching_logits() as f64;
            assert!(share > 0.95, "{share} of the work is in groups");
            let gather = LinearGather::new(&rows, Element::Bf16, 4096, &h100).unwrap();
            assert!(gather.is_some());
        }
    }
}

candle_trie_emulator::emulated_tests! {
    a_head_row_is_loaded_once_where_its_set_fits,
    a_head_row_is_loaded_once_a_tile_and_the_target_once_more,
    statistics_cost_one_more_look_where_the_temperature_waits_for_them,
    the_backward_pass_loads_and_stores_once,
    the_head_gradient_looks_once_more_at_ragged_rows_and_sums_each_token_once,
    a_frozen_head_leaves_nothing_of_the_head_to_gather,
}
