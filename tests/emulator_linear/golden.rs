//! The published cases, their logits as hidden states under a head that is the unit matrix. That the
//! definition gives what was published is the business of tests/golden.

use candle_trie::{Convention, Temperature};

use crate::batch::{Batch, Options};
use crate::device::Case;
use crate::golden_case::{self, for_each_case};

/// A larger unit matrix takes the emulator minutes.
const LARGEST: usize = 100;

fn check(golden: &golden_case::Case, temperature: Temperature, convention: Convention) {
    let size = golden.vocabulary;
    let unit = |index: usize| f64::from(index / size == index % size);
    let batch = Batch {
        hidden: golden.logits.iter().map(|&logit| logit.into()).collect(),
        head: (0..size * size).map(unit).collect(),
        bias: vec![0.0; size],
        positions: golden.rows.positions(),
        vocabulary: size,
        width: size,
        sets: golden.sets.clone(),
        rows: golden.rows.clone(),
    };
    let options = Options {
        whole_vocabulary: false,
        temperature,
        convention,
        bias: false,
        weights: false,
        bear: None,
    };
    Case::new(&batch, &options).assert_correct::<f32>(&golden.name);
}

fn golden_cases_in_f32() {
    for_each_case(|golden| {
        if golden.vocabulary > LARGEST || golden.has_label_outside_its_set() {
            return;
        }
        check(
            golden,
            Temperature::fixed(golden.number("tau")),
            Convention::fixed(),
        );
        let mut strategy = golden.strategy();
        strategy.allow_degenerate = true;
        check(golden, golden.adaptive(strategy), Convention::adaptive());
    });
}

candle_trie_emulator::emulated_tests! {
    golden_cases_in_f32,
}
