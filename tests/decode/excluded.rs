use std::collections::HashSet;

use candle_core::{DType, Device, Tensor};
use candle_trie::{BeamSearch, ExactSearch, Normalisation, TokenTrie};
use proptest::prelude::*;

use crate::exact;
use crate::model::{all, assert_found, catalogue, rows, run};

/// What is to be found when some items are left out.
fn without(mut all: Vec<(Vec<u64>, f64)>, excluded: &[u64]) -> Vec<(Vec<u64>, f64)> {
    for (items, _) in &mut all {
        items.retain(|item| !excluded.contains(item));
    }
    all.retain(|(items, _)| !items.is_empty());
    all
}

prop_compose! {
    /// Items of several paths, and paths that list an item several times.
    fn catalogue_of_repeated_items()(
        mut items in catalogue(), ids in prop::sample::select(vec![3, 10, 40]),
    ) -> Vec<(u64, Vec<u32>)> {
        items.iter_mut().for_each(|(id, _)| *id %= ids);
        items
    }
}

proptest! {
    #[test]
    fn the_other_items_keep_their_probabilities_and_a_beam_wastes_no_place(
        items in catalogue_of_repeated_items(),
        excluded in prop::collection::vec(0u64..40, 0..40), vocabulary: bool,
    ) {
        let trie = TokenTrie::new(items.clone()).unwrap();
        let normalise = if vocabulary { Normalisation::Vocabulary } else { Normalisation::Trie };
        let expected = without(all(&items, &trie, normalise, 1.0), &excluded);
        let search = BeamSearch::new(&trie, 1, expected.len().max(1), 1.0).unwrap();
        let search = search.with_normalisation(normalise).exclude_items(&[&excluded]).unwrap();
        assert_found(&run(search), &expected);
    }

    #[test]
    fn the_exact_search_leaves_out_the_same(
        items in catalogue_of_repeated_items(),
        excluded in prop::collection::vec(0u64..40, 0..20), k in 1usize..8,
    ) {
        let trie = TokenTrie::new(items.clone()).unwrap();
        let mut expected = without(all(&items, &trie, Normalisation::Trie, 1.0), &excluded);
        expected.truncate(k);
        let search = ExactSearch::new(&trie, 1, k, 1.0).unwrap().exclude_items(&[&excluded]).unwrap();
        assert_found(&exact::run(search, |_| ()), &expected);
    }
}

#[test]
fn each_user_leaves_out_its_own() {
    let trie = TokenTrie::new((0..4u64).map(|item| (item, [item as u32 + 1, 0]))).unwrap();
    let search = BeamSearch::new(&trie, 2, 4, 1.0).unwrap();
    let mut search = search.exclude_items(&[vec![0, 99], vec![2, 3, 2]]).unwrap();
    search.step(&rows(&[vec![], vec![]])).unwrap();
    let items = |user| -> HashSet<u64> {
        search
            .results(user)
            .iter()
            .flat_map(|found| found.items.clone())
            .collect()
    };
    assert_eq!(items(0), HashSet::from([1, 2, 3]));
    assert_eq!(items(1), HashSet::from([0, 1]));
}

#[test]
fn an_item_is_excluded_from_all_its_paths_however_often_it_is_listed() {
    let paths = [(5, [1, 0]), (5, [1, 0]), (5, [2, 0]), (6, [3, 0])];
    let trie = TokenTrie::new(paths).unwrap();
    let search = BeamSearch::new(&trie, 1, 2, 1.0).unwrap();
    let by_beams = run(search.exclude_items(&[[5]]).unwrap());
    let search = ExactSearch::new(&trie, 1, 2, 1.0).unwrap();
    let exactly = exact::run(search.exclude_items(&[[5]]).unwrap(), |_| ());
    for found in [by_beams, exactly] {
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].items, [6]);
    }
}

#[test]
fn a_user_who_leaves_out_everything_is_done() {
    let trie = TokenTrie::new([(0, [1, 0]), (1, [2, 0])]).unwrap();
    let search = BeamSearch::new(&trie, 1, 2, 1.0)
        .unwrap()
        .exclude_items(&[[0, 1]])
        .unwrap();
    assert_eq!(search.active_beams(), 0);
    assert!(search.results(0).is_empty());
    let search = BeamSearch::new(&trie, 3, 2, 1.0).unwrap();
    let search = search
        .exclude_items(&[vec![0], vec![0, 1], vec![]])
        .unwrap();
    assert_eq!(search.beam_users(), [0, 2]);
}

#[test]
fn a_search_that_has_begun_starts_again_without_the_items_that_are_left_out() {
    let paths = [[1, 1, 0], [1, 2, 0], [2, 1, 0], [2, 2, 0]];
    let trie = TokenTrie::new((0..).zip(paths)).unwrap();
    let search = ExactSearch::new(&trie, 1, 4, 1.0).unwrap();
    let mut search = search.with_prefixes_per_step(1).unwrap();
    let equal = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
    search.step(&equal).unwrap();
    let mut search = search.exclude_items(&[[0]]).unwrap();
    while search.next_expansion().is_some() {
        search.step(&equal).unwrap();
    }
    let found: Vec<_> = search
        .results(0)
        .into_iter()
        .flat_map(|found| found.items)
        .collect();
    assert_eq!(found.len(), 3);
    assert_eq!(HashSet::from_iter(found), HashSet::from([1, 2, 3]));
}
