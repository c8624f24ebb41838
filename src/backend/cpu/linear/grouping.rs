//! The measurement that `GROUPED_ROWS` and `GROUPED_WORK` are based on, which scripts/benchmarks runs.

use std::time::{Duration, Instant};

use super::plan::Plan;
use super::scores::{score_as_planned, softmax};
use super::{Head, Hidden, Wanted, hidden_gradient};
use crate::backend::batch::{Batch, Denominator};
use crate::{Row, Rows, TokenSets};

/// The number of sets of each size, which is enough for every thread to have work.
const SETS: usize = 16;
const ROWS: [usize; 5] = [2, 4, 8, 32, 128];
const TOKENS: [usize; 5] = [8, 32, 128, 512, 1024];

#[test]
#[ignore = "a measurement, not a test"]
fn grouping() {
    for width in [576, 2048] {
        println!(
            "| rows \\ tokens, H = {width} | {} |",
            TOKENS.map(|t| t.to_string()).join(" | ")
        );
        println!("|---:|{}", "---:|".repeat(TOKENS.len()));
        for rows in ROWS {
            let ratios =
                TOKENS.map(|tokens| format!("{:.1}", ragged_to_grouped(rows, tokens, width)));
            println!("| {rows} | {} |", ratios.join(" | "));
        }
        println!();
    }
}

/// Returns the time of a pass over ragged rows divided by that of a pass by GEMMs, which includes gathering the head rows.
fn ragged_to_grouped(rows: usize, tokens: usize, width: usize) -> f64 {
    let offsets = (0..=SETS).map(|set| (set * tokens) as u32).collect();
    let sets = TokenSets::from_raw(offsets, (0..(SETS * tokens) as u32).collect()).unwrap();
    let targets = (0..SETS * rows).map(|index| {
        let set = (index % SETS) as u32;
        Row {
            position: index as u32,
            set,
            target: set * tokens as u32,
        }
    });
    let targets = Rows::from_raw(SETS * rows, targets.collect()).unwrap();
    let batch = Batch::new(&sets, &targets, None, Denominator::LabelledWeight).unwrap();
    let numbers = |count: usize| (0..count).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
    let (hidden, head): (Vec<f32>, Vec<f32>) =
        (numbers(SETS * rows * width), numbers(SETS * tokens * width));
    let hidden = Hidden {
        values: &hidden,
        stride: width,
        width,
    };
    let head = Head {
        values: &head,
        stride: width,
        width,
        base: None,
        bias: &[],
        frozen: None,
    };
    let wanted = Wanted {
        hidden: true,
        head: false,
    };
    let pass = |grouped: bool| {
        let start = Instant::now();
        let plan = Plan::grouping(&batch, |_, _| grouped);
        let scores = score_as_planned(plan, hidden, &head, &batch).unwrap();
        let (_, saved) = softmax(scores, &batch, 1.0, wanted);
        hidden_gradient(&saved, &head, &batch, |_| 1.0, SETS * rows * width);
        start.elapsed()
    };
    let mut shortest = [Duration::MAX; 2];
    for _ in 0..11 {
        for (grouped, shortest) in shortest.iter_mut().enumerate() {
            *shortest = pass(grouped == 1).min(*shortest);
        }
    }
    shortest[0].as_secs_f64() / shortest[1].as_secs_f64()
}
