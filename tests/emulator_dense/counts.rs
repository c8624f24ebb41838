//! How much is moved.

use candle_trie::{Rows, Scope, Temperature, TokenSets};
use candle_trie_emulator::{Emulator, Traffic};
use half::bf16;

use crate::batch::{noise, rows_of, strategy};
use crate::device::{Case, Gradient, Outcome};

const WIDTH: usize = 4096;
const POSITIONS: usize = 40;

/// Sets of 300, 60 and 2 tokens, and rows at a third of the positions.
fn batch() -> (TokenSets, Rows) {
    let mut tokens: Vec<u32> = (0..300).map(|token| token * 13).collect();
    tokens.extend((0..60).map(|token| token * 67 + 5));
    tokens.extend([8, 4000]);
    let sets = TokenSets::from_raw(vec![0, 300, 360, 362], tokens).unwrap();
    let rows: Vec<_> = (0..POSITIONS as u32)
        .step_by(3)
        .map(|position| {
            let set = position % 3 * 2 + position / 3 % 3;
            (position, set, [13, 72, 8][set as usize])
        })
        .collect();
    (sets, rows_of(POSITIONS, &rows))
}

fn valid_logits(sets: &TokenSets, rows: &Rows) -> u64 {
    (rows.as_slice().iter())
        .map(|row| sets.get(row.set).unwrap().len() as u64)
        .sum()
}

fn traced(temperature: Temperature, gradient: Gradient) -> Outcome {
    let (sets, rows) = batch();
    let logits = noise(1, POSITIONS * WIDTH, 4.0);
    let case = Case::<bf16> {
        temperature,
        gradient,
        ..Case::new(&sets, &rows, WIDTH, &logits)
    };
    case.run(&Emulator::default().traced()).unwrap()
}

fn temperatures() -> [Temperature; 3] {
    let [branching, root] = [Scope::Branching, Scope::Root].map(|scope| strategy(scope).into());
    [Temperature::fixed(1.3), branching, root]
}

fn assert_written_once(gradient: Traffic) {
    let bytes = (POSITIONS * WIDTH * size_of::<bf16>()) as u64;
    assert_eq!((gradient.stored, gradient.loaded), (bytes, 0));
    assert_eq!(gradient.store_sectors, bytes / 32);
}

fn a_valid_logit_is_loaded_once_and_a_gradient_byte_stored_once() {
    let (sets, rows) = batch();
    let valid = valid_logits(&sets, &rows);
    for temperature in temperatures() {
        for gradient in [Gradient::None, Gradient::Fused] {
            let outcome = traced(temperature.clone(), gradient);
            let report = &outcome.forward;
            assert!(outcome.caches_all_rows);
            assert_eq!(
                report.traffic("logits").loaded,
                2 * valid,
                "{temperature:?}"
            );
            let looks = if gradient == Gradient::None { 1 } else { 2 };
            // Where a warp begins and ends its stretch it looks a little past it.
            let tokens = report.traffic("tokens").loaded as f64 / 4.0;
            assert!(tokens >= (looks * valid) as f64, "{tokens} of {valid}");
            if gradient == Gradient::Fused {
                assert_written_once(report.traffic("gradient"));
            }
        }
    }
}

/// The sums of the blocks: six of the statistics, and the loss, of 8 bytes each.
fn blocks_add_up_the_loss_alone_where_no_row_enters_the_statistics() {
    for (temperature, sums) in temperatures().into_iter().zip([1, 7, 7]) {
        for gradient in [Gradient::None, Gradient::Fused] {
            let outcome = traced(temperature.clone(), gradient);
            let partials = outcome.forward.traffic("partials");
            let expected = 8 * sums * u64::from(outcome.blocks);
            let what = format!("{temperature:?}, {gradient:?}");
            assert_eq!(
                (partials.stored, partials.loaded),
                (expected, expected),
                "{what}"
            );
        }
    }
}

fn a_launch_without_a_gradient_has_no_block_without_a_row() {
    let (_, rows) = batch();
    for temperature in temperatures() {
        let [alone, fused] =
            [Gradient::None, Gradient::Fused].map(|gradient| traced(temperature.clone(), gradient));
        assert_eq!(alone.blocks as usize, rows.len());
        assert!(fused.blocks > alone.blocks);
        // The sums are those of the same rows.
        assert_eq!(
            (alone.loss, alone.statistics),
            (fused.loss, fused.statistics)
        );
    }
}

fn the_backward_pass_loads_and_stores_once() {
    let (sets, rows) = batch();
    let outcome = traced(Temperature::fixed(1.3), Gradient::Backward);
    let report = &outcome.backward;
    assert_eq!(
        report.traffic("logits").loaded,
        2 * (valid_logits(&sets, &rows) - rows.len() as u64)
    );
    assert_written_once(report.traffic("gradient"));
}

fn rows_that_begin_between_packets_waste_few_sectors() {
    let (sets, rows) = batch();
    let width = WIDTH + 3;
    let logits = noise(1, POSITIONS * width, 4.0);
    for gradient in [Gradient::Fused, Gradient::Backward] {
        let case = Case::<bf16> {
            gradient,
            ..Case::new(&sets, &rows, width, &logits)
        };
        let outcome = case.run(&Emulator::default().traced()).unwrap();
        let report = match gradient {
            Gradient::Fused => &outcome.forward,
            _ => &outcome.backward,
        };
        let traffic = report.traffic("gradient");
        assert_eq!(traffic.stored, (POSITIONS * width * 2) as u64);
        let waste = traffic.store_sectors as f64 / (traffic.stored as f64 / 32.0);
        assert!(waste <= 1.1, "{waste}");
    }
}

fn reductions_have_no_bank_conflicts() {
    // A logit or none for each thread of two warps: lanes that skip the target then have no next
    // turn, which the counts would take for this one.
    let tokens: Vec<u32> = (0..64).chain(0..40).chain([3, 9]).collect();
    let sets = TokenSets::from_raw(vec![0, 64, 104, 106], tokens).unwrap();
    let rows = rows_of(5, &[(0, 0, 5), (1, 1, 39), (2, 2, 3), (4, 0, 63)]);
    let logits = noise(1, 5 * 64, 4.0);
    for temperature in temperatures() {
        let case = Case::<bf16> {
            temperature,
            gradient: Gradient::None,
            ..Case::new(&sets, &rows, 64, &logits)
        };
        let outcome = case.run(&Emulator::default().traced()).unwrap();
        assert_eq!(outcome.forward.shared.bank_conflicts, 0);
    }
}

fn a_whole_vocabulary_streams() {
    let width = 13_011;
    let sets = TokenSets::whole_vocabulary(width).unwrap();
    let rows = rows_of(3, &[(0, 0, 5), (1, 0, 13_010), (2, 0, 0)]);
    let logits = noise(1, 3 * width, 4.0);
    for gradient in [Gradient::Fused, Gradient::Backward] {
        let case = Case::<bf16> {
            gradient,
            ..Case::new(&sets, &rows, width, &logits)
        };
        let outcome = case.run(&Emulator::default().traced()).unwrap();
        let logits = outcome.forward.traffic("logits");
        let bytes = (3 * width * 2) as u64;
        let looks = if gradient == Gradient::Fused { 2 } else { 1 };
        // Every thread of a block looks for the target's.
        assert!(!outcome.caches_all_rows);
        assert!(
            logits.loaded <= looks * bytes + 3 * 2 * 1024,
            "{}",
            logits.loaded
        );
        let waste = logits.load_sectors as f64 / logits.least_load_sectors as f64;
        assert!(waste <= 1.1, "{waste}");
    }
}

candle_trie_emulator::emulated_tests! {
    a_valid_logit_is_loaded_once_and_a_gradient_byte_stored_once,
    blocks_add_up_the_loss_alone_where_no_row_enters_the_statistics,
    a_launch_without_a_gradient_has_no_block_without_a_row,
    the_backward_pass_loads_and_stores_once,
    rows_that_begin_between_packets_waste_few_sectors,
    reductions_have_no_bank_conflicts,
    a_whole_vocabulary_streams,
}
