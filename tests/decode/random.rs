//! Random searches for several users at once, each user's compared with an enumeration of the catalogue.

use candle_core::{Device, Tensor};
use candle_trie::{BeamSearch, ExactSearch, Normalisation, SearchResult, TokenTrie};
use rand::seq::IndexedRandom;
use rand::{Rng, rngs::StdRng};

use crate::fuzz::for_seeds;
use crate::model::{VOCABULARY, all_of, assert_found, logits};

/// What a search is asked for.
struct Case {
    items: Vec<(u64, Vec<u32>)>,
    trie: TokenTrie,
    excluded: Vec<Vec<u64>>,
    normalise: Normalisation,
    temperature: f64,
}

impl Case {
    fn new(random: &mut StdRng) -> Self {
        let longest = random.random_range(1..7);
        let path = |random: &mut StdRng| -> Vec<u32> {
            let length = random.random_range(0..longest);
            let tokens = (0..length).map(|_| random.random_range(1..VOCABULARY as u32));
            tokens.chain([0]).collect()
        };
        let count = random.random_range(1..60);
        let items: Vec<_> = (0..count).map(|item| (item, path(random))).collect();
        // Of some users nearly everything is left out, and items that there are not.
        let share = *[0.0, 0.1, 0.9, 1.0].choose(random).unwrap();
        let excluded = (0..random.random_range(1..4))
            .map(|_| {
                (0..count + 3)
                    .filter(|_| random.random_bool(share))
                    .collect()
            })
            .collect();
        Self {
            trie: TokenTrie::new(items.clone()).unwrap(),
            items,
            excluded,
            normalise: *[Normalisation::Trie, Normalisation::Vocabulary]
                .choose(random)
                .unwrap(),
            temperature: random.random_range(0.3..3.0),
        }
    }

    /// All that a user may be shown, most probable first.
    fn expected(&self, user: usize) -> Vec<(Vec<u64>, f64)> {
        let prompt = [prompt(user)];
        let mut all = all_of(
            &prompt,
            &self.items,
            &self.trie,
            self.normalise,
            self.temperature,
        );
        for (items, _) in &mut all {
            items.retain(|item| !self.excluded[user].contains(item));
        }
        all.retain(|(items, _)| !items.is_empty());
        all
    }
}

/// What a user's model has read before the first token.
fn prompt(user: usize) -> u32 {
    1000 + user as u32
}

fn rows(prefixes: &[Vec<u32>]) -> Tensor {
    let rows: Vec<f64> = prefixes.iter().flat_map(|prefix| logits(prefix)).collect();
    Tensor::from_vec(rows, (prefixes.len(), VOCABULARY), &Device::Cpu).unwrap()
}

#[test]
fn beams_find_what_enumerating_the_catalogue_finds() {
    for_seeds(300, |random| {
        let case = Case::new(random);
        let width = random.random_range(1..70);
        let users = case.excluded.len();
        let search = BeamSearch::new(&case.trie, users, width, case.temperature).unwrap();
        let mut search = search
            .with_normalisation(case.normalise)
            .exclude_items(&case.excluded)
            .unwrap();
        let begin = |&user: &u32| [&[prompt(user as usize)], search.common_prefix()].concat();
        let mut read: Vec<Vec<u32>> = search.beam_users().iter().map(begin).collect();
        while let Some(step) = search.step(&rows(&read)).unwrap() {
            let go_on = |(&parent, tokens): (&u32, &Vec<u32>)| {
                [&read[parent as usize][..], tokens].concat()
            };
            read = step.parents.iter().zip(&step.tokens).map(go_on).collect();
            assert_eq!(read.len(), search.active_beams());
        }
        for user in 0..users {
            let (found, expected) = (search.results(user), case.expected(user));
            if width >= case.trie.leaf_count() {
                assert_found(&found, &expected);
            }
            assert!(found.len() <= width && found.is_empty() == expected.is_empty());
            assert_are_among(&found, &expected);
        }
    });
}

#[test]
fn exact_searches_find_what_enumerating_the_catalogue_finds() {
    for_seeds(300, |random| {
        let case = Case {
            normalise: Normalisation::Trie,
            ..Case::new(random)
        };
        let k = random.random_range(1..70);
        let users = case.excluded.len();
        let search = ExactSearch::new(&case.trie, users, k, case.temperature).unwrap();
        let search = search
            .with_prefixes_per_step(random.random_range(1..6))
            .unwrap();
        let mut search = search.exclude_items(&case.excluded).unwrap();
        let mut read: Vec<Vec<u32>> = Vec::new();
        while let Some(expansion) = search.next_expansion() {
            let first = read.len();
            for (row, tokens) in expansion.tokens.iter().enumerate() {
                let before = match expansion.parents[row] {
                    Some(parent) => read[parent as usize].clone(),
                    None => [
                        &[prompt(expansion.users[row] as usize)],
                        search.common_prefix(),
                    ]
                    .concat(),
                };
                read.push([&before[..], tokens].concat());
            }
            search.step(&rows(&read[first..])).unwrap();
        }
        for user in 0..users {
            let mut expected = case.expected(user);
            expected.truncate(k);
            assert_found(&search.results(user), &expected);
        }
    });
}

/// Whether what was found is best first, and has its true probability.
fn assert_are_among(found: &[SearchResult], expected: &[(Vec<u64>, f64)]) {
    assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
    for found in found {
        let (_, probability) = expected
            .iter()
            .find(|(items, _)| *items == found.items)
            .unwrap();
        assert!((found.log_probability - probability).abs() < 1e-9);
    }
}
