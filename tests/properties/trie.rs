//! A trie answers as a map of prefixes does.

use candle_trie::{Error, TokenTrie};
use proptest::prelude::*;

use crate::catalogue::*;

/// Compares every answer of the trie with the map's.
fn check(trie: &TokenTrie, prefixes: &Prefixes, tokens: &[u32]) {
    let order = prefixes.breadth_first();
    assert_eq!(trie.node_count(), order.len());
    let (mut edge, mut branching, mut leaves) = (0, 0, Vec::new());
    for (node, prefix) in order.iter().enumerate() {
        let node = node as u32;
        let (children, items) = &prefixes.0[*prefix];
        assert_eq!(trie.walk(prefix), Some(node), "{prefix:?}");
        let children: Vec<u32> = children.iter().copied().collect();
        assert_eq!(trie.children(node), children);
        assert_eq!(trie.items(node), items);
        assert_eq!(
            trie.first_child(node),
            (!children.is_empty()).then_some(edge + 1)
        );
        for token in tokens {
            let rank = children.iter().position(|child| child == token);
            let child = rank.map(|rank| edge + rank as u32 + 1);
            assert_eq!(trie.child(node, *token), child);
        }
        edge += children.len() as u32;
        branching += usize::from(children.len() > 1);
        if children.is_empty() {
            leaves.push((node, items.as_slice()));
        }
    }
    assert_eq!(trie.branching_count(), branching);
    assert_eq!(trie.leaf_count(), leaves.len());
    assert_eq!(
        trie.item_count(),
        leaves.iter().map(|(_, items)| items.len()).sum::<usize>()
    );
    assert!(trie.leaves().eq(leaves));
    assert_eq!(
        Some(trie.max_token()),
        prefixes.0.keys().flatten().copied().max()
    );
    assert_eq!(trie.sets().count(), Some(trie.node_count()));
    for beyond in [trie.node_count() as u32, u32::MAX] {
        assert_eq!(trie.children(beyond), [0u32; 0]);
        assert_eq!(trie.child(beyond, 0), None);
        assert_eq!(trie.items(beyond), [0u64; 0]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The factor makes tokens so large that a sort key holds fewer of them than paths are long.
    #[test]
    fn answers_are_those_of_a_map_of_prefixes(
        items in catalogues(40),
        factor in prop::sample::select(vec![1, 1000, u32::MAX / 5 - 1]),
    ) {
        let scaled = |(id, path): Item| (id, path.iter().map(|token| token * factor).collect());
        let items: Vec<Item> = items.into_iter().map(scaled).collect();
        let tokens: Vec<u32> = (0..=END).map(|token| token * factor).collect();
        check(&trie(&items), &Prefixes::new(&items), &tokens);
    }

    #[test]
    fn the_order_of_the_items_does_not_matter(items in catalogues(40)) {
        let mut reversed = items.clone();
        reversed.reverse();
        prop_assert_eq!(trie(&items), trie(&reversed));
    }

    #[test]
    fn a_prefix_of_another_path_is_refused_and_both_items_are_named(
        paths in prop::collection::vec(prop::collection::vec(0u32..3, 1..6), 1..12),
    ) {
        let items = || (100..).zip(paths.clone());
        let is_prefix = |short: &Vec<u32>, long: &Vec<u32>| {
            short.len() < long.len() && long.starts_with(short)
        };
        let expected = paths.iter().any(|short| paths.iter().any(|long| is_prefix(short, long)));
        match TokenTrie::new(items()) {
            Ok(_) => prop_assert!(!expected),
            Err(Error::PathIsPrefix { item, length, other, other_length }) => {
                let (short, long) = (&paths[item as usize - 100], &paths[other as usize - 100]);
                prop_assert!(is_prefix(short, long));
                prop_assert_eq!((length, other_length), (short.len(), long.len()));
            }
            Err(error) => prop_assert!(false, "{error}"),
        }
    }

    #[test]
    fn an_empty_path_is_refused_and_its_item_named(items in catalogues(10), at in 0usize..10) {
        let at = at % items.len();
        let mut items = items;
        items[at] = (1234, vec![]);
        let error = TokenTrie::new(items).unwrap_err();
        prop_assert!(matches!(error, Error::EmptyPath { item: 1234 }), "{error}");
    }
}

#[test]
fn an_empty_catalogue_is_refused() {
    let error = TokenTrie::new(std::iter::empty::<Item>()).unwrap_err();
    assert!(matches!(error, Error::EmptyCatalogue), "{error}");
}

#[test]
fn flat_arrays_that_do_not_fit_together_are_refused() {
    for (ids, offsets, tokens) in [
        (vec![1], vec![0], vec![7]),
        (vec![1], vec![0, 2], vec![7]),
        (vec![1], vec![1, 1], vec![7]),
        (vec![1, 2, 3], vec![0, 2, 1, 3], vec![7, 8, 9]),
        (vec![1, 2], vec![0, usize::MAX, 2], vec![7, 8]),
        (vec![1], vec![0, 1], vec![u32::MAX]),
    ] {
        let refused = TokenTrie::from_paths(&ids, &offsets, &tokens);
        assert!(refused.is_err(), "{ids:?} {offsets:?} {tokens:?}");
    }
}

/// Enough paths for several chunks of every parallel stage, which must fit together without a seam.
#[test]
fn a_catalogue_built_in_parallel_is_the_one_built_on_a_single_thread() {
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    let items: Vec<Item> = (0..20_000)
        .map(|id| {
            let length = 2 + random(8);
            let path = (0..length).map(|depth| random(2 + 5 * depth) as u32);
            (id, path.chain([60]).collect())
        })
        .collect();
    let build = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| trie(&items))
    };
    let alone = build(1);
    check(&alone, &Prefixes::new(&items), &[0, 1, 60]);
    assert_eq!(build(4), alone);
    assert!(alone.leaf_count() > 3 * 4096 && alone.leaf_count() < items.len());
}

/// The chunks in the middle of such a leaf add items to the trie and nothing else.
#[test]
fn a_leaf_of_more_items_than_several_chunks_hold_has_them_all_in_order() {
    let shared = (0..20_000).rev().map(|id| (id, vec![5, 6, 7]));
    let around = [
        (90_000, vec![1, 60]),
        (90_001, vec![5, 60]),
        (90_002, vec![9, 6, 7, 60]),
    ];
    let items: Vec<Item> = shared.chain(around).collect();
    let trie = trie(&items);
    check(&trie, &Prefixes::new(&items), &[1, 5, 6, 7, 9, 60]);
    assert!(
        trie.items(trie.walk(&[5, 6, 7]).unwrap())
            .iter()
            .copied()
            .eq(0..20_000)
    );
}

/// The parts that are sorted apart differ in size a thousandfold, and one is worth several threads.
#[test]
fn a_catalogue_whose_paths_mostly_begin_alike_is_sorted_as_any_other() {
    let items: Vec<Item> = (0..100_000u64)
        .map(|id| {
            let shuffled = id * 7_919 % 100_000;
            let first = if shuffled < 90_000 {
                3
            } else {
                shuffled as u32
            };
            (
                id,
                vec![first, 1, shuffled as u32 / 300, shuffled as u32 % 300, 60],
            )
        })
        .collect();
    let trie = trie(&items);
    assert_eq!(trie.leaf_count(), items.len());
    for (id, path) in &items {
        assert_eq!(trie.items(trie.walk(path).unwrap()), [*id]);
    }
    let rise = |node| trie.children(node).is_sorted_by(|a, b| a < b);
    assert!((0..trie.node_count() as u32).all(rise));
}
