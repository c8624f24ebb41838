//! A catalogue and a model without weights, and the definition of a path's probability.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use candle_trie::{BeamSearch, Normalisation, SearchResult, TokenTrie};
use proptest::prelude::*;

pub const VOCABULARY: usize = 6;

/// Logits that depend on the whole prefix, in a reproducible way.
pub fn logits(prefix: &[u32]) -> Vec<f64> {
    logits_over(prefix, VOCABULARY)
}

/// The same over a vocabulary of another size.
pub fn logits_over(prefix: &[u32], vocabulary: usize) -> Vec<f64> {
    (0..vocabulary)
        .map(|token| {
            let mixed = prefix.iter().fold(token as u64 + 1, |mixed, &token| {
                let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(6_364_136_223_846_793_005);
                (mixed ^ (mixed >> 32)).wrapping_add(u64::from(token) + 17)
            });
            let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
            (mixed >> 40) as f64 / (1 << 22) as f64 - 2.0
        })
        .collect()
}

pub fn rows(prefixes: &[Vec<u32>]) -> Tensor {
    let rows: Vec<f64> = prefixes.iter().flat_map(|prefix| logits(prefix)).collect();
    Tensor::from_vec(rows, (prefixes.len(), VOCABULARY), &Device::Cpu).unwrap()
}

prop_compose! {
    /// Items that end in token 0; some share a path.
    pub fn catalogue()(
        paths in prop::collection::vec(prop::collection::vec(1..VOCABULARY as u32, 0..5), 1..30),
    ) -> Vec<(u64, Vec<u32>)> {
        paths.into_iter().enumerate().map(|(id, mut path)| {
            path.push(0);
            (id as u64, path)
        }).collect()
    }
}

/// Runs a search for one user to its end, each beam's prefix told from the steps alone.
pub fn run(mut search: BeamSearch) -> Vec<SearchResult> {
    let mut prefixes = vec![search.common_prefix().to_vec()];
    loop {
        let Some(step) = search
            .step(&rows(&prefixes[..search.active_beams()]))
            .unwrap()
        else {
            return search.results(0);
        };
        assert!(step.tokens.iter().all(|tokens| !tokens.is_empty()));
        prefixes = (step.parents.iter().zip(&step.tokens))
            .map(|(&parent, tokens)| [&prefixes[parent as usize][..], tokens].concat())
            .collect();
    }
}

/// Every path's items and log-probability, by walking it: most probable first, equal ones by items.
pub fn all(
    items: &[(u64, Vec<u32>)],
    trie: &TokenTrie,
    normalise: Normalisation,
    temperature: f64,
) -> Vec<(Vec<u64>, f64)> {
    all_of(&[], items, trie, normalise, temperature)
}

/// The same for a model that has read `prompt` before.
pub fn all_of(
    prompt: &[u32],
    items: &[(u64, Vec<u32>)],
    trie: &TokenTrie,
    normalise: Normalisation,
    temperature: f64,
) -> Vec<(Vec<u64>, f64)> {
    let mut paths: BTreeMap<&[u32], Vec<u64>> = BTreeMap::new();
    for (id, path) in items {
        paths.entry(path).or_default().push(*id);
    }
    paths.values_mut().for_each(|items| items.sort_unstable());
    let log_probability = |path: &[u32]| {
        let step = |length: usize| {
            let logits = logits(&[prompt, &path[..length]].concat());
            let node = trie.walk(&path[..length]).unwrap();
            let among: Vec<u32> = match normalise {
                Normalisation::Trie => trie.children(node).to_vec(),
                Normalisation::Vocabulary => (0..VOCABULARY as u32).collect(),
            };
            let exponential = |token: u32| (logits[token as usize] / temperature).exp();
            let sum: f64 = among.into_iter().map(exponential).sum();
            (exponential(path[length]) / sum).ln()
        };
        (0..path.len()).map(step).sum()
    };
    let mut all: Vec<(Vec<u64>, f64)> = (paths.into_iter())
        .map(|(path, items)| (items, log_probability(path)))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    all
}

/// Whether a search found these, in this order, where the order is not a matter of rounding.
pub fn assert_found(found: &[SearchResult], expected: &[(Vec<u64>, f64)]) {
    assert_eq!(found.len(), expected.len());
    for (found, (_, log_probability)) in found.iter().zip(expected) {
        assert!((found.log_probability - log_probability).abs() < 1e-9);
    }
    for found in found {
        // Several paths may be of the same items.
        let mut same = (expected.iter()).filter(|(items, _)| *items == found.items);
        assert!(same.any(|&(_, expected)| (found.log_probability - expected).abs() < 1e-9));
    }
}

/// Beam search in the plainest code there is, over the paths themselves: each whole path with its score, best first.
pub fn plain_beams(
    items: &[(u64, Vec<u32>)],
    width: usize,
    normalise: Normalisation,
    penalty: f64,
) -> Vec<(Vec<u32>, f64)> {
    let next = |prefix: &[u32]| -> BTreeSet<u32> {
        let rest = items
            .iter()
            .filter_map(|(_, path)| path.strip_prefix(prefix));
        rest.filter_map(|rest| rest.first().copied()).collect()
    };
    let ride = |mut prefix: Vec<u32>| {
        while normalise == Normalisation::Trie && next(&prefix).len() == 1 {
            prefix.extend(next(&prefix));
        }
        prefix
    };
    let score = |prefix: &[u32], log: f64| log / (prefix.len() as f64).powf(penalty);
    let mut living = vec![(ride(vec![]), 0.0)];
    let mut finished: Vec<(Vec<u32>, f64)> = vec![];
    if next(&living[0].0).is_empty() {
        finished.extend(living.pop());
    }
    while !living.is_empty() {
        let mut candidates = vec![];
        for (prefix, log) in &living {
            let logits = logits(prefix);
            let among: Vec<u32> = match normalise {
                Normalisation::Trie => next(prefix).into_iter().collect(),
                Normalisation::Vocabulary => (0..VOCABULARY as u32).collect(),
            };
            let sum: f64 = among
                .iter()
                .map(|&token| logits[token as usize].exp())
                .sum();
            for token in next(prefix) {
                let log = log + (logits[token as usize].exp() / sum).ln();
                candidates.push(([&prefix[..], &[token]].concat(), log));
            }
        }
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
        living.clear();
        for (rank, (prefix, log)) in candidates.into_iter().enumerate() {
            let prefix = ride(prefix);
            if !next(&prefix).is_empty() {
                living.push((prefix, log));
            } else if normalise == Normalisation::Trie || rank < width {
                let score = score(&prefix, log);
                finished.push((prefix, score));
            }
        }
        living.truncate(width);
        finished.sort_by(|a, b| b.1.total_cmp(&a.1));
        finished.truncate(width);
        if let Some(&(_, worst)) = finished.get(width - 1) {
            if penalty == 0.0 {
                living.retain(|(_, log)| *log > worst);
            } else if living
                .iter()
                .all(|(prefix, log)| score(prefix, *log) <= worst)
            {
                living.clear();
            }
        }
    }
    finished
}
