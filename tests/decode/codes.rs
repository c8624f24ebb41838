//! Catalogues of semantic IDs: three codes an item, dense fan-outs, and items that collide on one path.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use candle_trie::{
    BeamSearch, ExactSearch, MaskedSoftmaxLoss, Reduction, Rows, SearchResult, TokenTrie,
};

use crate::model::logits_over;

const CODES: u32 = 16;
const LEVELS: u32 = 3;
const VOCABULARY: usize = (LEVELS * CODES) as usize;
const TEMPERATURE: f64 = 0.8;

/// Items whose codes look random. Of 3,000 items on 4,096 paths many collide.
fn catalogue() -> Vec<(u64, [u32; 3])> {
    let code = |item: u64, level: u32| {
        let mixed = (item * 3 + u64::from(level) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        level * CODES + ((mixed ^ (mixed >> 29)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 60) as u32
    };
    let path = |item| [0, 1, 2].map(|level| code(item, level));
    (0..3000).map(|item| (item, path(item))).collect()
}

/// The log-probability of every prefix of every path, from the definition and the list of items alone.
fn by_definition(items: &[(u64, [u32; 3])]) -> BTreeMap<Vec<u32>, f64> {
    let prefixes: BTreeSet<&[u32]> = (items.iter())
        .flat_map(|(_, path)| (0..=3).map(|length| &path[..length]))
        .collect();
    let mut found = BTreeMap::from([(vec![], 0.0)]);
    for length in 0..3 {
        for prefix in prefixes.iter().filter(|prefix| prefix.len() == length) {
            let logits = logits_over(prefix, VOCABULARY);
            let scaled = |token: u32| logits[token as usize] / TEMPERATURE;
            let next: Vec<u32> = (0..VOCABULARY as u32)
                .filter(|&token| prefixes.contains(&[prefix, &[token][..]].concat()[..]))
                .collect();
            let sum: f64 = next.iter().map(|&token| scaled(token).exp()).sum();
            for token in next {
                let log_probability = found[*prefix] + scaled(token) - sum.ln();
                found.insert([prefix, &[token][..]].concat(), log_probability);
            }
        }
    }
    found
}

/// The paths of items, most probable first.
fn ranked(all: &BTreeMap<Vec<u32>, f64>, length: usize) -> Vec<(&Vec<u32>, f64)> {
    let of_length = all.iter().filter(|(prefix, _)| prefix.len() == length);
    let mut ranked: Vec<_> = of_length.map(|(path, &log)| (path, log)).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked
}

fn rows(prefixes: &[Vec<u32>]) -> Tensor {
    let rows = prefixes
        .iter()
        .flat_map(|prefix| logits_over(prefix, VOCABULARY));
    Tensor::from_vec(
        rows.collect::<Vec<_>>(),
        (prefixes.len(), VOCABULARY),
        &Device::Cpu,
    )
    .unwrap()
}

fn by_beams(trie: &TokenTrie, width: usize) -> Vec<SearchResult> {
    let mut search = BeamSearch::new(trie, 1, width, TEMPERATURE).unwrap();
    let mut prefixes = vec![search.common_prefix().to_vec()];
    while let Some(step) = search.step(&rows(&prefixes)).unwrap() {
        prefixes = (step.parents.iter().zip(&step.tokens))
            .map(|(&parent, tokens)| [&prefixes[parent as usize][..], tokens].concat())
            .collect();
    }
    search.results(0)
}

fn exactly(trie: &TokenTrie, k: usize) -> Vec<SearchResult> {
    let mut search = ExactSearch::new(trie, 1, k, TEMPERATURE).unwrap();
    let mut read: Vec<Vec<u32>> = Vec::new();
    while let Some(expansion) = search.next_expansion() {
        let first = read.len();
        for (parent, tokens) in expansion.parents.iter().zip(&expansion.tokens) {
            let before = parent.map_or(search.common_prefix(), |row| &read[row as usize]);
            read.push([before, tokens].concat());
        }
        search.step(&rows(&read[first..])).unwrap();
    }
    search.results(0)
}

fn assert_same(found: &[SearchResult], expected: &[SearchResult]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.items, expected.items);
        assert!((found.log_probability - expected.log_probability).abs() < 1e-12);
    }
}

#[test]
fn path_probabilities_of_codes_are_those_of_the_definition() {
    let items = catalogue();
    let trie = TokenTrie::new(items.clone()).unwrap();
    let all = by_definition(&items);
    let whole = ranked(&all, 3);
    assert_eq!(whole.len(), trie.leaf_count());
    let total: f64 = whole.iter().map(|(_, log)| log.exp()).sum();
    assert!((total - 1.0).abs() < 1e-12, "{total}");
    for found in [by_beams(&trie, 4096), exactly(&trie, 4096)] {
        assert_eq!(found.len(), whole.len());
        for (found, (path, log_probability)) in found.iter().zip(&whole) {
            assert_eq!(found.items, trie.items(trie.walk(path).unwrap()));
            assert!((found.log_probability - log_probability).abs() < 1e-12);
        }
    }
    // The loss of a path, summed over its codes, is the same number.
    let loss = MaskedSoftmaxLoss::new(&trie, TEMPERATURE).unwrap();
    let loss = loss.with_reduction(Reduction::None).unwrap();
    for (path, log_probability) in whole.iter().step_by(97) {
        let labels = Rows::from_shifted(&trie, &vec![(*path).clone()]).unwrap();
        let prefixes: Vec<_> = (0..3).map(|length| path[..length].to_vec()).collect();
        let logits = rows(&prefixes).reshape((1, 3, VOCABULARY)).unwrap();
        let losses = loss.forward_at(&logits, &labels, TEMPERATURE).unwrap().loss;
        let sum = losses.sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!((sum + log_probability).abs() < 1e-12, "{sum}");
    }
}

#[test]
fn items_that_collide_are_found_together_with_the_probability_of_one_path() {
    let items = catalogue();
    let trie = TokenTrie::new(items.clone()).unwrap();
    assert!(trie.leaf_count() < trie.item_count());
    let mut on_path: BTreeMap<[u32; 3], Vec<u64>> = BTreeMap::new();
    for (item, path) in items {
        on_path.entry(path).or_default().push(item);
    }
    let found = by_beams(&trie, 4096);
    let mut found: Vec<Vec<u64>> = found.into_iter().map(|found| found.items).collect();
    let mut expected: Vec<Vec<u64>> = on_path.into_values().collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    // One of several is excluded alone, and its path stays.
    let several = expected.iter().find(|items| items.len() > 1).unwrap();
    let search = BeamSearch::new(&trie, 1, 4096, TEMPERATURE).unwrap();
    let mut search = search.exclude_items(&[&several[..1]]).unwrap();
    let even =
        |rows: usize| Tensor::ones((rows, VOCABULARY), candle_core::DType::F64, &Device::Cpu);
    while search
        .step(&even(search.active_beams()).unwrap())
        .unwrap()
        .is_some()
    {}
    let found = search.results(0);
    assert_eq!(found.len(), trie.leaf_count());
    assert!(found.iter().any(|found| found.items == several[1..]));
}

#[test]
fn many_beams_find_what_exact_search_finds_where_they_keep_every_prefix_of_it() {
    let items = catalogue();
    let trie = TokenTrie::new(items.clone()).unwrap();
    let all = by_definition(&items);
    // All prefixes of two codes fit these beams.
    assert!(ranked(&all, 2).len() <= 256);
    for width in [256, 1000] {
        assert_same(&by_beams(&trie, width), &exactly(&trie, width));
    }
    // Of 50 beams, the best paths are found up to the first with a prefix beyond the best 50.
    let kept: BTreeSet<&Vec<u32>> = (ranked(&all, 2).iter().take(50))
        .map(|(path, _)| *path)
        .collect();
    let sure =
        (ranked(&all, 3).into_iter()).take_while(|(path, _)| kept.contains(&path[..2].to_vec()));
    let sure = sure.count().min(50);
    assert!(sure >= 10, "{sure}");
    assert_same(&by_beams(&trie, 50)[..sure], &exactly(&trie, sure));
}
