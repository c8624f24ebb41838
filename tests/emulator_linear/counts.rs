//! How much is moved, and in how many launches.

use std::collections::BTreeMap;

use candle_trie::launch::{DeviceLimits, Element, LinearGradients, LinearPlan};
use candle_trie::{AdaptiveStrategy, MaskedSoftmaxLoss, Row, Rows, Scope, Temperature, TokenSets};
use candle_trie_emulator::{Emulator, Traffic};
use half::bf16;

use crate::batch::Batch;
use crate::device::{Case, Gradients, Outcome};
use crate::emulated::LIMITS;
use crate::number::Number;
use crate::plan::Item;
use crate::shapes::{batch, numbers, options, temperatures};
use crate::support::Shape;

const H100: DeviceLimits = DeviceLimits {
    multiprocessors: 132,
    shared_bytes_per_block: 227 << 10,
    shared_bytes_per_multiprocessor: 228 << 10,
};

const WIDTH: usize = 128;
const ROW: u64 = 2 * WIDTH as u64;

/// Sets that take several items, one, and a part of one.
fn mixed() -> Batch {
    batch(WIDTH, 420, &[(290, 70), (2, 9), (5, 2), (33, 1)])
}

fn traced(case: Case) -> Outcome {
    case.run::<bf16>(&Emulator::default().traced()).unwrap()
}

fn wasted_sectors(traffic: Traffic) -> f64 {
    traffic.load_sectors as f64 / traffic.least_load_sectors as f64
}

fn assert_few_sectors(traffic: Traffic) {
    let waste = wasted_sectors(traffic);
    assert!(waste <= 1.1, "{waste}");
}

/// The branching rows of a batch over a vocabulary of their tokens alone.
fn compact(shape: &Shape, width: usize) -> Batch {
    let distinct = shape.distinct_tokens();
    let number: BTreeMap<u32, u32> = (distinct.iter().copied()).zip(0..).collect();
    let (mut offsets, mut tokens, mut sets) = (vec![0], Vec::new(), BTreeMap::new());
    let mut rows = Vec::new();
    for row in shape.rows.as_slice() {
        let set = shape.sets.get(row.set).unwrap();
        if set.len() < 2 {
            continue;
        }
        let renumbered = *sets.entry(row.set).or_insert_with(|| {
            tokens.extend(set.iter().map(|token| number[&token]));
            offsets.push(tokens.len() as u32);
            offsets.len() as u32 - 2
        });
        rows.push(Row {
            position: rows.len() as u32 * 4 / 3,
            set: renumbered,
            target: number[&row.target],
        });
    }
    let (positions, vocabulary) = (rows.len() * 4 / 3 + 1, distinct.len());
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

/// As the items say: each head row once an item and phase, and the target's once more; scores and the unscaled gradient once.
fn assert_loaded_once<T: Number>(batch: &Batch, outcome: &Outcome, what: &str) {
    let (scores, gradient) = outcome.phases();
    let (element, width) = (size_of::<T>() as u64, batch.width as u64);
    let (rows, positions) = (batch.rows.len() as u64, batch.positions as u64);
    let sum = |items: &[Item], of: &dyn Fn(&Item) -> u64| items.iter().map(of).sum::<u64>();
    let of = |a: u32, b: u32| u64::from(a) * u64::from(b);
    let packets = |count: u32| count.next_multiple_of(4);
    // Rows lie on end, so most begin inside a sector where they do not fill theirs.
    let in_sectors = width * element % 32 == 0;

    let head = outcome.forward.traffic("head");
    let of_scores = sum(scores, &|item| of(item.count, item.inner_count));
    let of_gradient = sum(gradient, &|item| of(item.count, item.inner_count));
    let expected = (of_scores + of_gradient + rows * width) * element;
    assert_eq!(head.loaded, expected, "{what}: head");
    // Each phase: the head rows of each set as often as its rows are cut.
    let groups = || outcome.tables.groups.iter();
    let once: u64 = groups()
        .map(|group| of(group.tokens, group.rows.div_ceil(64)) * width)
        .sum();
    assert_eq!((of_scores, of_gradient), (once, once), "{what}");

    let hidden = outcome.forward.traffic("hidden");
    let of_rows = sum(scores, &|item| of(item.rows, item.inner_count));
    assert_eq!(hidden.loaded, of_rows * element, "{what}: hidden");
    if in_sectors {
        assert_few_sectors(head);
        assert_few_sectors(hidden);
    }

    let kept = outcome.forward.traffic("scores");
    let made: u64 = groups()
        .map(|group| 4 * of(group.rows, packets(group.tokens)))
        .sum();
    let read = sum(gradient, &|item| {
        4 * of(item.rows, packets(item.inner_count))
    });
    assert_eq!((kept.stored, kept.loaded), (made, read), "{what}: scores");
    // Rows of scores begin at any packet, and those of small sets are no more than one.
    let waste = wasted_sectors(kept);
    assert!(waste <= 1.25, "{what}: {waste} of scores");

    let unscaled = 4 * rows * width.next_multiple_of(16 / element);
    let stored = outcome.forward.traffic("unscaled").stored;
    let loaded = outcome.backward.traffic("unscaled").loaded;
    // In whole packets, of which the gradient needs what is in the width.
    assert_eq!(
        (stored, loaded),
        (unscaled, 4 * rows * width),
        "{what}: unscaled"
    );
    let made = outcome.backward.traffic("gradient");
    assert_eq!((made.stored, made.loaded), (positions * width * element, 0));
}

/// On few blocks that take whole tiles, and on many that take slices of them.
fn each_head_row_is_loaded_once_an_item_and_phase() {
    let sets = [(300, 70), (2, 9), (5, 2), (33, 1), (65, 33), (17, 64)];
    let fixed = options(Temperature::fixed(1.3));
    let on = |multiprocessors| DeviceLimits {
        multiprocessors,
        ..H100
    };
    for (width, limits) in [(640, on(16)), (200, on(2)), (97, on(16)), (64, LIMITS)] {
        let batch = batch(width, 900, &sets);
        let case = Case {
            limits,
            gradients: Gradients::Hidden,
            ..Case::new(&batch, &fixed)
        };
        let what = format!("width {width}");
        let outcome = traced(case);
        assert_loaded_once::<bf16>(&batch, &outcome, &what);
        let sliced = |items: &[Item]| items.iter().any(|item| item.slices > 1);
        let (scores, gradient) = outcome.phases();
        assert!(width != 640 || (sliced(scores) && sliced(gradient)));
        if width == 200 {
            let outcome = case.run::<f32>(&Emulator::default().traced()).unwrap();
            assert_loaded_once::<f32>(&batch, &outcome, "f32");
        }
    }
}

fn each_head_row_of_a_books_batch_is_loaded_once_an_item_and_phase() {
    let fixed = options(Temperature::fixed(1.3));
    for shape in [Shape::books(), Shape::books_of_llama_3()] {
        let batch = compact(&shape, WIDTH);
        let case = Case {
            gradients: Gradients::Hidden,
            ..Case::new(&batch, &fixed)
        };
        assert_loaded_once::<bf16>(&batch, &traced(case), "books");
    }
}

fn an_evaluation_loads_the_head_once() {
    let batch = mixed();
    let fixed = options(Temperature::fixed(1.3));
    let outcome = traced(Case {
        gradients: Gradients::None,
        ..Case::new(&batch, &fixed)
    });
    let once: u64 = (outcome.tables.groups.iter())
        .map(|group| u64::from(group.tokens * group.rows.div_ceil(64)) * ROW)
        .sum();
    assert_eq!(outcome.forward.traffic("head").loaded, once);
    assert_eq!(outcome.launches.len(), 1);
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
        let mut lines = outcome.forward.by_line();
        lines.retain(|line| line.traffic.bank_conflicts > 0);
        assert!(
            waits < 0.2,
            "{waits} of {accesses} accesses of 128 bytes: {lines:#?}"
        );
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
        assert_eq!(outcome.launches.len(), 1);
        let gradient = outcome.forward.traffic("gradient");
        assert_eq!(gradient.stored, batch.positions as u64 * ROW);
        assert_eq!(gradient.store_sectors, gradient.least_store_sectors);
    }
}

fn the_head_gradient_stores_each_token_once() {
    let batch = mixed();
    let fixed = options(Temperature::fixed(1.3));
    let outcome = traced(Case::new(&batch, &fixed));
    assert_eq!(outcome.launches.len(), 3);
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
    let adaptive = AdaptiveStrategy {
        scope: Scope::Branching,
        ..AdaptiveStrategy::default()
    };
    for shape in [Shape::books(), Shape::books_of_llama_3()] {
        for temperature in [Temperature::fixed(1.3), adaptive.into()] {
            let loss = MaskedSoftmaxLoss::new(shape.sets.clone(), temperature.clone()).unwrap();
            let rows = loss.linear_rows(&shape.rows).unwrap();
            let (gradients, most) = (LinearGradients::Hidden, LinearPlan::MOST_SCORES);
            let pass = LinearPlan::new(rows, Element::Bf16, 4096, gradients, &H100, most).unwrap();
            let adapts = matches!(temperature, Temperature::Adaptive(_));
            // The backward pass is one more.
            assert_eq!(pass.forward_launches_count(adapts), 1);
        }
    }
}

candle_trie_emulator::emulated_tests! {
    each_head_row_is_loaded_once_an_item_and_phase,
    each_head_row_of_a_books_batch_is_loaded_once_an_item_and_phase,
    an_evaluation_loads_the_head_once,
    few_accesses_of_shared_memory_wait_for_a_bank,
    a_fixed_temperature_costs_no_statistics,
    the_backward_pass_loads_and_stores_once,
    value_and_gradient_take_one_launch_and_store_once,
    the_head_gradient_stores_each_token_once,
}
