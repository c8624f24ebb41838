//! Exact searches whose scores are the kernel's.

use candle_trie::launch::DecodeFault;
use candle_trie::{Error, ExactSearch, Normalisation, TokenTrie};
use half::{bf16, f16};

use crate::device::{Logits, assert_same_found, expand};
use crate::emulated::noise;
use crate::model;
use crate::number::Number;
use crate::searches::catalogue;

fn exact_searches_find_the_top_of_the_catalogue() {
    for seed in 0..4 {
        let items = catalogue(25, 4, model::VOCABULARY as u32, seed);
        let trie = TokenTrie::new(items.clone()).unwrap();
        let expected = model::all(&items, &trie, Normalisation::Trie, 1.3);
        for (k, at_once) in [(1, 1), (3, 4), (40, 2)] {
            let search = ExactSearch::new(&trie, 1, k, 1.3).unwrap();
            let mut search = search.with_prefixes_per_step(at_once).unwrap();
            let mut read: Vec<Vec<u32>> = Vec::new();
            while let Some(expansion) = search.next_expansion() {
                let first = read.len();
                for (parent, tokens) in expansion.parents.iter().zip(&expansion.tokens) {
                    let before = parent.map_or(search.common_prefix(), |row| &read[row as usize]);
                    read.push([before, tokens].concat());
                }
                let values = read[first..]
                    .iter()
                    .flat_map(|prefix| model::logits(prefix));
                let values: Vec<f64> = values.collect();
                let logits = Logits::<f32>::new(&values, model::VOCABULARY);
                expand(&mut search, &logits, at_once == 2).unwrap();
            }
            let found = search.results(0);
            let what = format!("seed {seed}, k {k}");
            assert_eq!(found.len(), k.min(expected.len()), "{what}");
            for (found, (_, log_probability)) in found.iter().zip(&expected) {
                // In f64, of logits that were rounded to f32.
                let apart = (found.log_probability - log_probability).abs();
                assert!(apart < 1e-5, "{what}: {apart}");
            }
            assert!(k >= expected.len() || search.bound(0) <= found[k - 1].log_probability);
        }
    }
}

/// Both searches to their end on the same logits, which depend on the step and the row alone.
fn assert_same_as_on_the_cpu<T: Number>(search: &ExactSearch, users: usize, width: usize) {
    let (mut on_cpu, mut by_kernels) = (search.clone(), search.clone());
    let mut number = 0;
    while let Some(expansion) = on_cpu.next_expansion() {
        number += 1;
        let what = format!("{:?}, step {number}", T::ELEMENT);
        assert_eq!(
            by_kernels.next_expansion().as_ref(),
            Some(&expansion),
            "{what}"
        );
        let rows = expansion.users.len();
        let values = noise(number * rows * width);
        let values: Vec<f64> = (values[(number - 1) * rows * width..].iter())
            .map(|&value| 6.0 * f64::from(value))
            .collect();
        let logits = Logits::<T>::new(&values, width);
        on_cpu.step(&logits.tensor()).unwrap();
        match number % 3 {
            0 => expand(&mut by_kernels, &logits.spread(width + 5), false).unwrap(),
            kind => expand(&mut by_kernels, &logits, kind == 1).unwrap(),
        }
    }
    assert_eq!(by_kernels.next_expansion(), None);
    for user in 0..users {
        let (found, expected) = (by_kernels.results(user), on_cpu.results(user));
        assert_same_found(&found, &expected, &format!("{:?}", T::ELEMENT));
    }
}

fn every_dtype_goes_as_the_cpu_does_for_users_who_exclude_items() {
    let vocabulary = 37;
    let items = catalogue(300, 3, vocabulary, 1);
    let trie = TokenTrie::new(items.clone()).unwrap();
    let all: Vec<u64> = items.iter().map(|(id, _)| *id).collect();
    let some = all.iter().copied().filter(|id| id % 3 != 0);
    let excluded = [vec![], some.collect(), all.clone(), vec![all[3]]];
    let search = ExactSearch::new(&trie, 4, 5, 1.7).unwrap();
    let search = search.exclude_items(&excluded).unwrap();
    let width = vocabulary as usize + 2;
    assert_same_as_on_the_cpu::<f32>(&search, 4, width);
    assert_same_as_on_the_cpu::<f16>(&search, 4, width);
    assert_same_as_on_the_cpu::<bf16>(&search, 4, width);
}

fn a_wide_root_goes_as_on_the_cpu() {
    let paths = (0..3000u32).flat_map(|token| {
        (0..1 + token % 3).map(move |next| (u64::from(4 * token + next), vec![token, next, 0]))
    });
    let trie = TokenTrie::new(paths).unwrap();
    let search = ExactSearch::new(&trie, 2, 6, 0.6).unwrap();
    assert_same_as_on_the_cpu::<bf16>(&search, 2, 3001);
}

fn infinite_logits_go_as_on_the_cpu_and_what_is_no_number_is_named() {
    let trie = TokenTrie::new((1..9u64).map(|item| (item, [item as u32, 0]))).unwrap();
    let search = ExactSearch::new(&trie, 1, 3, 1.0).unwrap();
    let none = f64::NEG_INFINITY;
    let mut one = [none; 11];
    one[4] = 2.0;
    for row in [[none; 11], one] {
        let logits = Logits::<f32>::new(&row, 11);
        let (mut on_cpu, mut by_kernels) = (search.clone(), search.clone());
        on_cpu.step(&logits.tensor()).unwrap();
        expand(&mut by_kernels, &logits, false).unwrap();
        assert_same_found(&by_kernels.results(0), &on_cpu.results(0), "infinite");
    }
    for bad in [f64::NAN, f64::INFINITY] {
        let mut row = [0.5; 11];
        // Token 10 continues no item.
        (row[10], row[6], row[3]) = (bad, bad, bad);
        let logits = Logits::<bf16>::new(&row, 11);
        let mut by_kernels = search.clone();
        for gathered in [true, false] {
            let error = expand(&mut by_kernels, &logits, gathered).unwrap_err();
            let expected = search.clone().step(&logits.tensor()).unwrap_err();
            assert_eq!(error.to_string(), expected.to_string());
            assert!(matches!(error, Error::NonFinite { token: 3, .. }));
        }
        // A refused step changes nothing.
        assert_eq!(by_kernels.next_expansion(), search.next_expansion());
    }
}

fn scores_of_other_prefixes_are_refused() {
    let trie = TokenTrie::new((1..9u64).map(|item| (item, [item as u32, 0]))).unwrap();
    let mut search = ExactSearch::new(&trie, 2, 3, 1.0).unwrap();
    let beams = search.decode_prefixes().unwrap();
    assert_eq!((beams.beams().len(), beams.candidates()), (2, 16));
    let sound = [DecodeFault {
        token: DecodeFault::NONE,
        value: 0.0,
    }; 2];
    assert!(search.apply_scores(&beams, &[0.0; 15], &sound).is_err());
    assert!(
        search
            .apply_scores(&beams, &[0.0; 16], &sound[1..])
            .is_err()
    );
    let other = ExactSearch::new(&trie, 1, 3, 1.0).unwrap();
    let beams = other.decode_prefixes().unwrap();
    assert!(search.apply_scores(&beams, &[0.0; 8], &sound[1..]).is_err());
}

candle_trie_emulator::emulated_tests! {
    exact_searches_find_the_top_of_the_catalogue,
    every_dtype_goes_as_the_cpu_does_for_users_who_exclude_items,
    a_wide_root_goes_as_on_the_cpu,
    infinite_logits_go_as_on_the_cpu_and_what_is_no_number_is_named,
    scores_of_other_prefixes_are_refused,
}
