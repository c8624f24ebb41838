//! Whole searches, whose every step the kernels make.

use candle_core::{Device, Tensor};
use candle_trie::{BeamSearch, Normalisation, SearchResult, TokenTrie};
use half::{bf16, f16};

use crate::device::{Logits, assert_same_found, gathered_step, step};
use crate::emulated::noise;
use crate::model;
use crate::number::Number;

const NORMALISE: [Normalisation; 2] = [Normalisation::Trie, Normalisation::Vocabulary];

/// Items of up to `depth` tokens below `vocabulary`, each with an end token, 0; some share a path.
pub fn catalogue(items: usize, depth: usize, vocabulary: u32, seed: usize) -> Vec<(u64, Vec<u32>)> {
    let mut numbers = noise((seed + 1) * items * (depth + 1)).into_iter().rev();
    let mut below = |bound: u32| {
        let number = (numbers.next().unwrap_or(0.0) + 1.0) / 2.0;
        ((number * bound as f32) as u32).min(bound - 1)
    };
    let mut item = |id: usize| {
        let length = below(depth as u32 + 1);
        let path = (0..length).map(|_| 1 + below(vocabulary - 1)).chain([0]);
        // Ids that fall where nodes rise.
        ((1000 - id) as u64, path.collect())
    };
    (0..items).map(&mut item).collect()
}

/// Runs a search for one user to its end by the kernels, with the model of the tests on the CPU.
fn found_by_kernels(mut search: BeamSearch) -> Vec<SearchResult> {
    let mut prefixes = vec![search.common_prefix().to_vec()];
    loop {
        let living = &prefixes[..search.active_beams()];
        let values: Vec<f64> = living.iter().flat_map(|p| model::logits(p)).collect();
        let logits = Logits::<f32>::new(&values, model::VOCABULARY);
        let Some(step) = step(&mut search, &logits).unwrap() else {
            return search.results(0);
        };
        prefixes = (step.parents.iter().zip(&step.tokens))
            .map(|(&parent, tokens)| [&prefixes[parent as usize][..], tokens].concat())
            .collect();
    }
}

fn searches_keep_what_the_plain_search_keeps() {
    for seed in 0..4 {
        let items = catalogue(25, 4, model::VOCABULARY as u32, seed);
        let trie = TokenTrie::new(items.clone()).unwrap();
        for normalise in NORMALISE {
            for (width, penalty) in [
                (1, 0.0),
                (2, 1.0),
                (3, 0.0),
                (5, -0.5),
                (40, 0.0),
                (40, 0.7),
            ] {
                let search = BeamSearch::new(&trie, 1, width, 1.0).unwrap();
                let search = search.with_normalisation(normalise);
                let found = found_by_kernels(search.with_length_penalty(penalty).unwrap());
                let expected = model::plain_beams(&items, width, normalise, penalty);
                let what = format!("{seed}, {normalise:?}, width {width}, penalty {penalty}");
                assert_eq!(found.len(), expected.len(), "{what}");
                for (found, (path, score)) in found.iter().zip(&expected) {
                    let leaf = trie.walk(path).unwrap();
                    assert_eq!(found.items, trie.items(leaf), "{what}");
                    assert!((found.score - score).abs() < 1e-5, "{what}");
                }
            }
        }
    }
}

/// Both searches to their end on the same logits, which depend on the step and the row alone.
fn assert_same_as_on_the_cpu<T: Number>(
    search: BeamSearch,
    normalise: Normalisation,
    width: usize,
    what: &str,
) {
    let search = search.with_normalisation(normalise);
    let (mut on_cpu, mut by_kernels) = (search.clone(), search);
    for number in 1.. {
        let rows = on_cpu.active_beams();
        let values = noise(number * rows * width);
        let values: Vec<f64> = (values[(number - 1) * rows * width..].iter())
            .map(|&value| 6.0 * f64::from(value))
            .collect();
        let logits = Logits::<T>::new(&values, width);
        let expected = on_cpu.step(&logits.tensor()).unwrap();
        let what = format!("{what}, {:?}, step {number}", T::ELEMENT);
        if normalise == Normalisation::Trie {
            let chosen = gathered_step(&mut by_kernels.clone(), &logits);
            assert_eq!(chosen.unwrap(), expected, "{what}, gathered");
        }
        let apart = logits.spread(width + 5);
        let chosen = step(
            &mut by_kernels,
            if number % 2 == 0 { &apart } else { &logits },
        );
        assert_eq!(chosen.unwrap(), expected, "{what}");
        for user in 0..4 {
            assert_same_found(&by_kernels.results(user), &on_cpu.results(user), &what);
        }
        if expected.is_none() {
            return;
        }
    }
}

fn every_dtype_goes_as_the_cpu_does_for_users_who_leave_out_items() {
    let vocabulary = 37;
    let items = catalogue(300, 3, vocabulary, 1);
    let trie = TokenTrie::new(items.clone()).unwrap();
    // Nothing, something, all but one path's, all.
    let all: Vec<u64> = items.iter().map(|(id, _)| *id).collect();
    let leaf = trie.walk(&items[7].1).unwrap();
    let but_one = all
        .iter()
        .copied()
        .filter(|id| !trie.items(leaf).contains(id));
    let some = all.iter().copied().filter(|id| id % 3 != 0);
    let excluded = [vec![], some.collect(), but_one.collect(), all.clone()];
    for normalise in NORMALISE {
        for penalty in [0.0, 1.0] {
            let search = BeamSearch::new(&trie, 4, 5, 1.7).unwrap();
            let search = search
                .with_normalisation(normalise)
                .with_length_penalty(penalty);
            let search = search.unwrap().exclude_items(&excluded).unwrap();
            let what = format!("{normalise:?}, penalty {penalty}");
            let width = vocabulary as usize + 2;
            assert_same_as_on_the_cpu::<f32>(search.clone(), normalise, width, &what);
            assert_same_as_on_the_cpu::<f16>(search.clone(), normalise, width, &what);
            assert_same_as_on_the_cpu::<bf16>(search.clone(), normalise, width, &what);
        }
    }
}

/// A root wider than a block, and than the candidates that each size of block is for.
fn a_wide_root_goes_as_on_the_cpu() {
    for (tokens, users) in [(257, 3), (3000, 2), (17_001, 1)] {
        let paths = (0..tokens).map(|token| {
            let path = if token % 40 != 0 {
                vec![token, 0]
            } else {
                vec![token, 1 + token % 2, 0]
            };
            (u64::from(tokens - token), path)
        });
        let paths: Vec<_> = paths
            .chain([(900_000, vec![80, 5, 0]), (900_001, vec![200, 5, 0])])
            .collect();
        let trie = TokenTrie::new(paths).unwrap();
        for normalise in NORMALISE {
            let search = BeamSearch::new(&trie, users, 6, 0.6).unwrap();
            let what = format!("{normalise:?}, {tokens} tokens");
            assert_same_as_on_the_cpu::<bf16>(search, normalise, tokens as usize + 3, &what);
        }
    }
}

/// Whole searches of some widths, for one user whose logits are all equal.
fn assert_equal_scores_go_as_on_the_cpu(
    items: Vec<(u64, Vec<u32>)>,
    vocabulary: usize,
    widths: &[usize],
) {
    let trie = TokenTrie::new(items).unwrap();
    for normalise in NORMALISE {
        for &width in widths {
            let search = BeamSearch::new(&trie, 1, width, 1.0).unwrap();
            let search = search.with_normalisation(normalise);
            let (mut on_cpu, mut by_kernels) = (search.clone(), search);
            loop {
                let even = vec![0.0; on_cpu.active_beams() * vocabulary];
                let logits = Logits::<f16>::new(&even, vocabulary);
                let expected = on_cpu.step(&logits.tensor()).unwrap();
                let what = format!("{normalise:?}, width {width}");
                assert_eq!(step(&mut by_kernels, &logits).unwrap(), expected, "{what}");
                assert_same_found(&by_kernels.results(0), &on_cpu.results(0), &what);
                if expected.is_none() {
                    break;
                }
            }
        }
    }
}

fn equal_scores_come_in_the_order_of_nodes_and_of_items() {
    // 60 whole paths and 60 living ones, all equally probable; ids fall where nodes rise.
    let one = (0..60u32).map(|token| (u64::from(500 - token), vec![token + 1, 0]));
    let two = (60..120u32)
        .flat_map(|token| [1, 2].map(|next| (u64::from(1000 - token), vec![token + 1, next, 0])));
    assert_equal_scores_go_as_on_the_cpu(one.chain(two).collect(), 125, &[1, 3, 61]);
}

fn many_equal_scores_are_told_apart_up_to_the_smallest_and_largest_orders() {
    // So many are not sorted whole, and the range of their orders ends beside the largest number that there is.
    let whole = |token: u32| match token {
        0 => (u64::MAX, vec![1]),
        _ => (u64::from(token - 1), vec![token + 1]),
    };
    assert_equal_scores_go_as_on_the_cpu((0..600).map(whole).collect(), 601, &[1, 2, 300]);
    let unfinished =
        (0..1028u32).flat_map(|token| [0, 1].map(|next| (u64::from(token), vec![token, next])));
    assert_equal_scores_go_as_on_the_cpu(unfinished.collect(), 1028, &[1, 2, 3]);
}

fn no_user_and_one_item_need_no_kernel() {
    let trie = TokenTrie::new([(7, vec![1, 2, 0]), (8, vec![2, 0])]).unwrap();
    let one_item = TokenTrie::new([(7, vec![1, 2, 0])]).unwrap();
    for (mut search, found) in [
        (BeamSearch::new(&trie, 0, 3, 1.0).unwrap(), 0),
        (BeamSearch::new(&one_item, 1, 3, 1.0).unwrap(), 1),
    ] {
        let beams = search.decode_beams().unwrap();
        let plan = candle_trie::launch::DecodePlan::new(
            &beams,
            candle_trie::launch::Element::F32,
            3,
            &crate::emulated::LIMITS,
        );
        assert!(plan.unwrap().is_none());
        assert_eq!(search.apply_choices(&beams, &[], &[]).unwrap(), None);
        assert_eq!(search.results(0).len(), found);
        let nothing = Tensor::zeros((0, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(search.step(&nothing).unwrap(), None);
    }
}

candle_trie_emulator::emulated_tests! {
    searches_keep_what_the_plain_search_keeps,
    every_dtype_goes_as_the_cpu_does_for_users_who_leave_out_items,
    a_wide_root_goes_as_on_the_cpu,
    equal_scores_come_in_the_order_of_nodes_and_of_items,
    many_equal_scores_are_told_apart_up_to_the_smallest_and_largest_orders,
    no_user_and_one_item_need_no_kernel,
}
