//! The published cases. That the definition gives what was published is the business of
//! tests/golden; here the kernels give what the definition does (the plain loss of the largest cases
//! is left out: it takes the emulator minutes).

use candle_trie::{Convention, Temperature, TokenSets};
use half::bf16;

use crate::device::{Case, Gradient};
use crate::golden_case::{self, for_each_case};
use crate::number::Number;

fn check<T: Number>(
    golden: &golden_case::Case,
    sets: &TokenSets,
    temperature: Temperature,
    convention: Convention,
) {
    let logits: Vec<f64> = golden.logits.iter().map(|&logit| logit.into()).collect();
    for gradient in [Gradient::Fused, Gradient::Backward] {
        let case = Case::<T> {
            temperature: temperature.clone(),
            convention,
            gradient,
            ..Case::new(sets, &golden.rows, golden.vocabulary, &logits)
        };
        case.assert_correct(&golden.name);
    }
}

fn in_every_kind<T: Number>() {
    for_each_case(|golden| {
        let fixed = Temperature::fixed(golden.number("tau"));
        if golden.logits.len() < 50_000 {
            let everything = TokenSets::whole_vocabulary(golden.vocabulary).unwrap();
            check::<T>(golden, &everything, fixed.clone(), Convention::fixed());
        }
        if golden.has_label_outside_its_set() {
            return;
        }
        check::<T>(golden, &golden.sets, fixed, Convention::fixed());
        let mut strategy = golden.strategy();
        strategy.allow_degenerate = true;
        let adaptive = golden.adaptive(strategy);
        check::<T>(golden, &golden.sets, adaptive, Convention::adaptive());
    });
}

fn golden_cases_in_f32() {
    in_every_kind::<f32>();
}

fn golden_cases_in_bf16() {
    in_every_kind::<bf16>();
}

candle_trie_emulator::emulated_tests! {
    golden_cases_in_f32,
    golden_cases_in_bf16,
}
