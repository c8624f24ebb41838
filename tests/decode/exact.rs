use candle_core::{DType, Device, Tensor};
use candle_trie::{Error, ExactSearch, Head, Normalisation, SearchResult, TokenTrie, exact_top_k};
use proptest::prelude::*;

use crate::model::{VOCABULARY, all, assert_found, catalogue, rows};

/// Runs a search for one user to its end; `after` sees it after every step.
pub fn run(mut search: ExactSearch, mut after: impl FnMut(&ExactSearch)) -> Vec<SearchResult> {
    let mut read: Vec<Vec<u32>> = Vec::new();
    while let Some(expansion) = search.next_expansion() {
        let first = read.len();
        for (parent, tokens) in expansion.parents.iter().zip(&expansion.tokens) {
            let parent = parent.map_or(search.common_prefix(), |row| &read[..first][row as usize]);
            let prefix = [parent, tokens].concat();
            read.push(prefix);
        }
        search.step(&rows(&read[first..])).unwrap();
        after(&search);
    }
    search.results(0)
}

proptest! {
    #[test]
    fn the_top_k_is_that_of_every_item_compared(
        items in catalogue(), k in 1usize..12, at_once in 1usize..6, temperature in 0.5..3.0,
    ) {
        let trie = TokenTrie::new(items.clone()).unwrap();
        let mut expected = all(&items, &trie, Normalisation::Trie, temperature);
        expected.truncate(k);
        let search = ExactSearch::new(&trie, 1, k, temperature).unwrap();
        assert_found(&run(search.with_prefixes_per_step(at_once).unwrap(), |_| ()), &expected);
        let found = exact_top_k(&trie, k, temperature, |prefixes| Ok(rows(prefixes))).unwrap();
        assert_found(&found, &expected);
    }

    #[test]
    fn the_bound_is_never_below_what_is_left(items in catalogue(), k in 1usize..12) {
        let trie = TokenTrie::new(items.clone()).unwrap();
        let all = all(&items, &trie, Normalisation::Trie, 1.0);
        let search = ExactSearch::new(&trie, 1, k, 1.0).unwrap();
        let mut last = f64::INFINITY;
        let found = run(search.clone(), |search| {
            let found = search.results(0);
            // What may be missed: paths that are not among those found, and belong to the top.
            let least = found.get(k - 1).map_or(f64::NEG_INFINITY, |found| found.log_probability);
            let left = (all.iter())
                .filter(|(items, _)| !found.iter().any(|found| found.items == *items))
                .map(|(_, log_probability)| *log_probability)
                .filter(|&log_probability| log_probability > least + 1e-9)
                .fold(f64::NEG_INFINITY, f64::max);
            assert!(search.bound(0) >= left - 1e-9);
            assert!(search.bound(0) <= last);
            last = search.bound(0);
        });
        if let Some(worst) = found.get(k - 1) {
            prop_assert!(last <= worst.log_probability || trie.leaf_count() == 1);
        }
    }
}

#[test]
fn it_finds_what_a_beam_drops_and_reads_no_more_than_it_must() {
    // Token 1 is the more probable at first, and each of its four items the less.
    let mut paths = vec![(9, vec![2, 0])];
    paths.extend((0..4).map(|item| (item, vec![1, item as u32 + 1, 0])));
    let trie = TokenTrie::new(paths).unwrap();
    let mut asked = 0;
    let found = exact_top_k(&trie, 1, 1.0, |prefixes| {
        asked += prefixes.len();
        let row = |prefix: &Vec<u32>| match prefix[..] {
            [] => vec![0.0, 0.6f64.ln(), 0.4f64.ln(), 0.0, 0.0, 0.0],
            _ => vec![0.0; VOCABULARY],
        };
        Ok(Tensor::new(
            prefixes.iter().map(row).collect::<Vec<_>>(),
            &Device::Cpu,
        )?)
    });
    assert_eq!(found.unwrap()[0].items, [9]);
    assert_eq!(asked, 2); // the root, and the prefix whose bound 0.6 lies above 0.4
}

#[test]
fn users_are_searched_side_by_side_from_hidden_states() {
    let trie =
        TokenTrie::new((0..9u64).map(|i| (i, [i as u32 % 3 + 1, i as u32 / 3 + 1, 0]))).unwrap();
    let head = Tensor::eye(VOCABULARY, DType::F32, &Device::Cpu).unwrap();
    let [base, added] = [0, 2].map(|first| head.narrow(0, first, 2 + first).unwrap());
    for head in [Head::from(&head), Head::with_added_rows(&base, &added)] {
        users_are_searched(&trie, head);
    }
}

fn users_are_searched(trie: &TokenTrie, head: Head) {
    let mut search = ExactSearch::new(trie, 2, 2, 1.0).unwrap();
    while let Some(expansion) = search.next_expansion() {
        // User 0 likes small tokens, user 1 large ones.
        let row = |&user: &u32| {
            let sign = if user == 0 { -1.0 } else { 1.0 };
            (0..VOCABULARY)
                .map(|token| token as f32 * sign)
                .collect::<Vec<_>>()
        };
        let hidden: Vec<Vec<f32>> = expansion.users.iter().map(row).collect();
        search
            .step((&Tensor::new(hidden, &Device::Cpu).unwrap(), head))
            .unwrap();
    }
    assert_eq!(search.results(0)[0].items, [0]);
    assert_eq!(search.results(1)[0].items, [8]);
    assert_eq!((search.results(0).len(), search.results(2).len()), (2, 0));
}

#[test]
fn one_item_needs_no_step() {
    let trie = TokenTrie::new([(7, vec![1, 2, 0])]).unwrap();
    let search = ExactSearch::new(&trie, 1, 5, 1.0).unwrap();
    assert_eq!(search.next_expansion(), None);
    assert_eq!(search.results(0)[0].items, [7]);
    assert_eq!(search.bound(0), f64::NEG_INFINITY);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let trie = TokenTrie::new([(0, vec![1, 0]), (1, vec![2, 0])]).unwrap();
    assert!(ExactSearch::new(&trie, 1, 0, 1.0).is_err());
    assert!(ExactSearch::new(&trie, 1, 1, f64::INFINITY).is_err());
    assert!(matches!(
        ExactSearch::new(&trie, usize::MAX, 1, 1.0),
        Err(Error::TooLarge { .. })
    ));
    assert!(
        ExactSearch::new(&trie, 1, 1, 1.0)
            .unwrap()
            .with_prefixes_per_step(0)
            .is_err()
    );
    let mut search = ExactSearch::new(&trie, 1, 1, 1.0).unwrap();
    let two = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    assert!(matches!(
        search.step(&two),
        Err(Error::LengthMismatch { what, expected: 1, actual: 2 }) if what.contains("prefix")
    ));
    assert_eq!(search.next_expansion().unwrap().users, [0]); // an error leaves the search where it was
}
