use candle_core::{DType, Device, Tensor};
use candle_trie::{BeamSearch, Error, FrozenHead, Head, Normalisation, SearchResult, TokenTrie};
use proptest::prelude::*;

use crate::model::{VOCABULARY, all, assert_found, catalogue, plain_beams, rows, run};

fn normalise() -> impl Strategy<Value = Normalisation> {
    prop_oneof![Just(Normalisation::Trie), Just(Normalisation::Vocabulary)]
}

proptest! {
    #[test]
    fn a_wide_beam_finds_every_item_best_first(
        items in catalogue(), temperature in 0.5..3.0, normalise in normalise(),
    ) {
        let trie = TokenTrie::new(items.clone()).unwrap();
        let search = BeamSearch::new(&trie, 1, items.len(), temperature).unwrap();
        let found = run(search.with_normalisation(normalise));
        assert_found(&found, &all(&items, &trie, normalise, temperature));
        if normalise == Normalisation::Trie {
            let total: f64 = found.iter().map(|found| found.log_probability.exp()).sum();
            prop_assert!((total - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn a_narrow_beam_finds_true_probabilities(
        items in catalogue(), width in 1usize..8, normalise in normalise(),
    ) {
        let trie = TokenTrie::new(items.clone()).unwrap();
        let search = BeamSearch::new(&trie, 1, width, 1.0).unwrap();
        let found = run(search.with_normalisation(normalise));
        let expected = all(&items, &trie, normalise, 1.0);
        prop_assert!(found.len() <= width && !found.is_empty());
        prop_assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
        for found in found {
            let same = expected.iter().find(|(items, _)| *items == found.items).unwrap();
            prop_assert!((same.1 - found.log_probability).abs() < 1e-9);
        }
    }

    #[test]
    fn beams_of_every_width_keep_what_the_plain_search_keeps(
        items in catalogue(), width in 1usize..6, normalise in normalise(), penalised: bool,
    ) {
        let trie = TokenTrie::new(items.clone()).unwrap();
        let penalty = if penalised { 1.0 } else { 0.0 };
        let search = BeamSearch::new(&trie, 1, width, 1.0).unwrap().with_normalisation(normalise);
        let found = run(search.with_length_penalty(penalty).unwrap());
        let expected = plain_beams(&items, width, normalise, penalty);
        prop_assert_eq!(found.len(), expected.len());
        for (found, (path, score)) in found.iter().zip(expected) {
            prop_assert_eq!(&items[found.items[0] as usize].1, &path);
            prop_assert!((found.score - score).abs() < 1e-9);
        }
    }

    #[test]
    fn a_length_penalty_ranks_by_log_probability_over_a_power_of_the_length(
        items in catalogue(), penalty in -1.0..2.0,
    ) {
        let trie = TokenTrie::new(items.clone()).unwrap();
        let search = BeamSearch::new(&trie, 1, items.len() + 1, 1.0).unwrap();
        let found = run(search.with_length_penalty(penalty).unwrap());
        prop_assert_eq!(found.len(), trie.leaf_count());
        prop_assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
        for found in found {
            let length = items[found.items[0] as usize].1.len() as f64;
            let score = found.log_probability / length.powf(penalty);
            prop_assert!((found.score - score).abs() < 1e-9);
        }
    }

    #[test]
    fn hidden_states_and_a_head_give_what_their_logits_give(
        items in catalogue(), normalise in normalise(), kind in 0..3,
        // The number of rows before the added ones of a head in two parts.
        base_rows in 0..=VOCABULARY,
        // Few, for which a whole head is multiplied the other way round, and many.
        users in prop::sample::select(vec![3, 130]),
    ) {
        let trie = TokenTrie::new(items).unwrap();
        let search = BeamSearch::new(&trie, users, 4, 0.7).unwrap().with_normalisation(normalise);
        let random = |shape: (usize, usize)| Tensor::randn(0f64, 1.0, shape, &Device::Cpu).unwrap();
        let (head, bias) = (random((VOCABULARY, 5)), random((1, VOCABULARY)).get(0).unwrap());
        let frozen = FrozenHead::with_limit(&head, Some(&bias), &trie, 1 << 20).unwrap();
        let (base, added) = (head.narrow(0, 0, base_rows), head.narrow(0, base_rows, VOCABULARY - base_rows));
        let (base, added) = (base.unwrap(), added.unwrap());
        let (head_of_hidden, bias) = match kind {
            0 => (Head::with_bias(&head, &bias), bias.clone()),
            1 => (Head::from(&frozen), bias),
            _ => (Head::with_added_rows(&base, &added), bias.zeros_like().unwrap()),
        };
        let (mut by_logits, mut by_hidden) = (search.clone(), search);
        loop {
            let hidden = random((by_logits.active_beams(), 5));
            let logits = hidden.matmul(&head.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
            let step = by_logits.step(&logits).unwrap();
            prop_assert_eq!(&step, &by_hidden.step((&hidden, head_of_hidden)).unwrap());
            if step.is_none() {
                break;
            }
        }
        for user in 0..users {
            let (by_logits, by_hidden) = (by_logits.results(user), by_hidden.results(user));
            prop_assert_eq!(by_logits.len(), by_hidden.len());
            for (a, b) in by_logits.iter().zip(&by_hidden) {
                prop_assert_eq!(&a.items, &b.items);
                prop_assert!((a.log_probability - b.log_probability).abs() < 1e-9);
            }
        }
    }
}

fn items(found: &[SearchResult]) -> Vec<u64> {
    found.iter().map(|found| found.items[0]).collect()
}

#[test]
fn users_do_not_disturb_each_other() {
    let trie = TokenTrie::new([(0, vec![1, 2, 0]), (1, vec![1, 3, 0]), (2, vec![4, 0])]).unwrap();
    let mut search = BeamSearch::new(&trie, 2, 3, 1.0).unwrap();
    let rows = |rows: [[f32; 5]; 2]| Tensor::new(&rows, &Device::Cpu).unwrap();
    let step = search
        .step(&rows([
            [0.0, 9.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 9.0],
        ]))
        .unwrap()
        .unwrap();
    assert_eq!(
        (step.parents, step.tokens),
        (vec![0, 1], vec![vec![1], vec![1]])
    );
    let tied = rows([[0.0, 0.0, 5.0, 0.0, 0.0], [0.0; 5]]);
    assert_eq!(search.step(&tied).unwrap(), None);
    assert_eq!(items(&search.results(0)), [0, 1, 2]);
    assert_eq!(items(&search.results(1)), [2, 0, 1]);
    assert!(search.results(2).is_empty());
}

#[test]
fn tokens_without_a_choice_ride_along() {
    let paths = [
        (0, vec![5, 1, 2, 3, 0]),
        (1, vec![5, 1, 2, 4, 0]),
        (2, vec![5, 2, 0]),
    ];
    let trie = TokenTrie::new(paths).unwrap();
    let mut search = BeamSearch::new(&trie, 1, 3, 1.0).unwrap();
    assert_eq!(search.common_prefix(), [5]);
    let even = |beams: usize| Tensor::zeros((beams, VOCABULARY), DType::F32, &Device::Cpu).unwrap();
    let step = search.step(&even(1)).unwrap().unwrap();
    assert_eq!((step.parents, step.tokens), (vec![0], vec![vec![1, 2]]));
    assert_eq!(search.step(&even(1)).unwrap(), None);
    assert_eq!(items(&search.results(0)), [2, 0, 1]);
}

#[test]
fn over_the_vocabulary_every_token_is_a_step() {
    let trie = TokenTrie::new([(0, vec![5, 1, 0]), (1, vec![5, 2, 0])]).unwrap();
    let search = BeamSearch::new(&trie, 1, 2, 1.0).unwrap();
    let mut search = search.with_normalisation(Normalisation::Vocabulary);
    assert!(search.common_prefix().is_empty());
    let step = search.step(&rows(&[vec![]])).unwrap().unwrap();
    assert_eq!(step.tokens, [[5]]);
}

#[test]
fn one_item_needs_no_step() {
    let trie = TokenTrie::new([(7, vec![1, 2, 0])]).unwrap();
    let mut search = BeamSearch::new(&trie, 1, 5, 1.0).unwrap();
    assert_eq!(search.active_beams(), 0);
    let nothing = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(search.step(&nothing).unwrap(), None);
    assert_eq!(search.results(0)[0].items, [7]);
    assert_eq!(search.results(0)[0].log_probability, 0.0);
}

#[test]
fn no_user_needs_no_step() {
    let trie = TokenTrie::new([(0, vec![1, 0]), (1, vec![2, 0])]).unwrap();
    let mut search = BeamSearch::new(&trie, 0, 5, 1.0).unwrap();
    let nothing = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(search.step(&nothing).unwrap(), None);
}

#[test]
fn equal_items_come_in_the_order_of_their_ids() {
    let trie = TokenTrie::new([(9, [1, 0]), (3, [2, 0]), (5, [3, 0])]).unwrap();
    let mut search = BeamSearch::new(&trie, 1, 3, 1.0).unwrap();
    let even = Tensor::zeros((1, VOCABULARY), DType::F32, &Device::Cpu).unwrap();
    search.step(&even).unwrap();
    assert_eq!(items(&search.results(0)), [3, 5, 9]);
}

#[test]
fn every_dtype_gives_the_same_beams() {
    let paths = (0..20u64).map(|item| (item, [item as u32 % 5 + 1, item as u32 / 5 + 1, 0]));
    let trie = TokenTrie::new(paths).unwrap();
    // Sixteenths are exact in every dtype.
    let logits: Vec<f64> = (0..VOCABULARY).map(|token| token as f64 * 1.3125).collect();
    let found = |dtype| {
        let mut search = BeamSearch::new(&trie, 1, 20, 1.0).unwrap();
        let rows = |beams: usize| {
            let rows = Tensor::new(vec![logits.clone(); beams], &Device::Cpu);
            rows.unwrap().to_dtype(dtype).unwrap()
        };
        while search.step(&rows(search.active_beams())).unwrap().is_some() {}
        items(&search.results(0))
    };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        assert_eq!(found(dtype), found(DType::F64));
    }
}

#[test]
fn an_item_with_two_paths_is_found_by_each() {
    let trie = TokenTrie::new([(5, [1, 0]), (5, [2, 0]), (6, [3, 0])]).unwrap();
    let found = run(BeamSearch::new(&trie, 1, 3, 1.0).unwrap());
    let mut items = items(&found);
    items.sort_unstable();
    assert_eq!(items, [5, 5, 6]);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let trie = TokenTrie::new([(0, vec![1, 0]), (1, vec![2, 0])]).unwrap();
    assert!(BeamSearch::new(&trie, 1, 0, 1.0).is_err());
    assert!(BeamSearch::new(&trie, 1, 1, 0.0).is_err());
    assert!(BeamSearch::new(&trie, 1, 1, 1e-39).is_err());
    assert!(matches!(
        BeamSearch::new(&trie, usize::MAX, 1, 1.0),
        Err(Error::TooLarge { .. })
    ));
    let search = BeamSearch::new(&trie, 1, 1, 1.0).unwrap();
    assert!(search.clone().with_length_penalty(f64::NAN).is_err());
    assert!(search.clone().exclude_items(&[[0], [1]]).is_err());
    let mut search = search;
    let mut step = |rows: Vec<Vec<f64>>| search.step(&Tensor::new(rows, &Device::Cpu).unwrap());
    assert!(matches!(
        step(vec![vec![0.0; 3]; 2]),
        Err(Error::LengthMismatch { what, expected: 1, actual: 2 }) if what.contains("beam")
    ));
    assert!(matches!(
        step(vec![vec![0.0, f64::NAN, 0.0]]),
        Err(Error::NonFinite { token: 1, .. })
    ));
    assert!(matches!(
        step(vec![vec![0.0; 2]]),
        Err(Error::TokenOutsideVocabulary { token: 2, .. })
    ));
    // The logits of other tokens do not matter, and −∞ everywhere leaves all as probable.
    assert!(
        step(vec![vec![f64::NAN, f64::NEG_INFINITY, f64::NEG_INFINITY]])
            .unwrap()
            .is_none()
    );
}
