//! Logits that are extreme, infinite or no numbers, and answers of something else.

use candle_trie::launch::{DecodeChoice, DecodeFault};
use candle_trie::{BeamSearch, Error, Normalisation, TokenTrie};
use half::bf16;

use crate::device::{Logits, assert_same_found, step};
use crate::number::Number;

const WIDTH: usize = 11;

/// Two users, two living beams each after the first step; token 0 ends an item.
fn search(normalise: Normalisation) -> BeamSearch {
    let paths = (1..9u32).flat_map(|first| (1..5u32).map(move |second| vec![first, second, 0]));
    let trie = TokenTrie::new((0..).zip(paths)).unwrap();
    let search = BeamSearch::new(&trie, 2, 3, 1.0).unwrap();
    search.with_normalisation(normalise)
}

/// Both ways give the same, be it an error; so they do in the next step, which finishes paths.
fn assert_same<T: Number>(search: &BeamSearch, values: &[f64]) -> Option<Error> {
    let (mut on_cpu, mut by_kernels) = (search.clone(), search.clone());
    let logits = Logits::<T>::new(values, WIDTH);
    let (expected, chosen) = (
        on_cpu.step(&logits.tensor()),
        step(&mut by_kernels, &logits),
    );
    let what = format!("{:?}, {values:?}", T::ELEMENT);
    match (expected, chosen) {
        (Ok(expected), Ok(chosen)) => assert_eq!(chosen, expected, "{what}"),
        (Err(expected), Err(error)) => {
            assert_eq!(error.to_string(), expected.to_string(), "{what}");
            return Some(error);
        }
        (expected, chosen) => panic!("{what}: {chosen:?}, not {expected:?}"),
    }
    let next = Logits::<T>::new(&RISING.repeat(on_cpu.active_beams()), WIDTH);
    let expected = on_cpu.step(&next.tensor()).unwrap();
    assert_eq!(step(&mut by_kernels, &next).unwrap(), expected, "{what}");
    for user in 0..2 {
        assert_same_found(&by_kernels.results(user), &on_cpu.results(user), &what);
    }
    None
}

fn rows(first: [f64; WIDTH], second: [f64; WIDTH]) -> Vec<f64> {
    [first, second].concat()
}

// No two pairs with the same sum, which rounding would put in any order; all are numbers of bf16.
const RISING: [f64; WIDTH] = [
    0.0, 0.5625, 1.0, 1.6875, 2.0, 2.8125, 3.25, 3.5, 4.125, 4.5, 5.0,
];

fn infinite_logits_go_as_on_the_cpu() {
    let none = f64::NEG_INFINITY;
    // A token that cannot be, one that alone can, all of a node's, all.
    let mut but_one = [none; WIDTH];
    but_one[3] = -2.0;
    let mut one = RISING;
    one[4] = none;
    let mut of_root = [none; WIDTH];
    of_root[10] = 1.0;
    for normalise in [Normalisation::Trie, Normalisation::Vocabulary] {
        for first in [but_one, one, of_root, [none; WIDTH]] {
            let values = rows(first, RISING);
            assert!(assert_same::<f32>(&search(normalise), &values).is_none());
            assert!(assert_same::<bf16>(&search(normalise), &values).is_none());
        }
    }
}

fn extreme_logits_go_as_on_the_cpu() {
    for scale in [1e4, -1e4, 1e-4] {
        let row = RISING.map(|value| scale * value);
        let values = rows(row, row);
        for normalise in [Normalisation::Trie, Normalisation::Vocabulary] {
            assert!(assert_same::<f32>(&search(normalise), &values).is_none());
            assert!(assert_same::<bf16>(&search(normalise), &values).is_none());
        }
    }
}

fn what_is_no_number_is_named() {
    for bad in [f64::NAN, f64::INFINITY] {
        // Tokens 3 and 6 continue some item; nothing says whether token 10 may.
        let mut row = RISING;
        (row[6], row[3]) = (bad, bad);
        let mut elsewhere = RISING;
        elsewhere[10] = bad;
        for normalise in [Normalisation::Trie, Normalisation::Vocabulary] {
            let over_vocabulary = normalise == Normalisation::Vocabulary;
            for values in [rows(RISING, row), rows(row, row)] {
                for error in [
                    assert_same::<f32>(&search(normalise), &values),
                    assert_same::<bf16>(&search(normalise), &values),
                ] {
                    assert!(matches!(error, Some(Error::NonFinite { token: 3, .. })));
                }
            }
            let error = assert_same::<f32>(&search(normalise), &rows(RISING, elsewhere));
            assert_eq!(error.is_some(), over_vocabulary);
        }
    }
    // What is left out counts for the probabilities of the others.
    let trie = TokenTrie::new((1..9u64).map(|item| (item, [item as u32, 0]))).unwrap();
    let search = BeamSearch::new(&trie, 1, 3, 1.0).unwrap();
    let search = search.exclude_items(&[[5u64]]).unwrap();
    let mut row = RISING;
    row[5] = f64::NAN;
    let error = assert_same::<f32>(&search, &row);
    assert!(matches!(error, Some(Error::NonFinite { token: 5, .. })));
}

fn a_refused_step_changes_nothing() {
    let mut search = search(Normalisation::Trie);
    let mut row = RISING;
    row[2] = f64::NAN;
    let bad = Logits::<f32>::new(&rows(RISING, row), WIDTH);
    let good = Logits::<f32>::new(&rows(RISING, RISING), WIDTH);
    let mut other = search.clone();
    step(&mut search, &bad).unwrap_err();
    assert_eq!(
        step(&mut search, &good).unwrap(),
        step(&mut other, &good).unwrap()
    );
}

fn answers_of_other_beams_are_refused() {
    let mut search = search(Normalisation::Trie);
    let beams = search.decode_beams().unwrap();
    let fault = DecodeFault {
        token: DecodeFault::NONE,
        value: 0.0,
    };
    let choice = DecodeChoice {
        candidate: 0,
        log_probability: -1.0,
    };
    let (choices, faults) = (
        vec![choice; beams.choices()],
        vec![fault; beams.beams().len()],
    );
    let is_length = |result| matches!(result, Err(Error::LengthMismatch { .. }));
    assert!(is_length(search.apply_choices(
        &beams,
        &choices[1..],
        &faults
    )));
    assert!(is_length(search.apply_choices(
        &beams,
        &choices,
        &faults[1..]
    )));
    // Candidate 0 is the first user's alone.
    let error = search.apply_choices(&beams, &choices, &faults).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

candle_trie_emulator::emulated_tests! {
    infinite_logits_go_as_on_the_cpu,
    extreme_logits_go_as_on_the_cpu,
    what_is_no_number_is_named,
    a_refused_step_changes_nothing,
    answers_of_other_beams_are_refused,
}
