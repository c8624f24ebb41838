//! Searches on a GPU go as they do on the CPU.

use candle_core::{DType, Device, Tensor};
use candle_trie::{BeamSearch, ExactSearch, Normalisation, SearchResult, TokenTrie};

use crate::batch::noise;
use crate::cuda;

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const USERS: usize = 3;

/// A root of `tokens`, some of them with a choice behind it, one with many.
fn trie(tokens: u32) -> TokenTrie {
    let paths = (1..tokens).flat_map(|token| {
        let choices = if token == 5 {
            tokens / 2
        } else {
            1 + token % 3
        };
        (1..=choices).map(move |next| vec![token, next, 0])
    });
    TokenTrie::new((0..).zip(paths)).unwrap()
}

fn searches(trie: &TokenTrie, width: usize) -> Vec<BeamSearch> {
    let excluded: [Vec<u64>; USERS] = [vec![], (0..40).collect(), vec![3, 5, 1000]];
    let mut searches = Vec::new();
    for normalise in [Normalisation::Trie, Normalisation::Vocabulary] {
        for penalty in [0.0, 1.0] {
            let search = BeamSearch::new(trie, USERS, width, 1.5).unwrap();
            let search = search.with_normalisation(normalise);
            let search = search.with_length_penalty(penalty).unwrap();
            searches.push(search.exclude_items(&excluded).unwrap());
        }
    }
    searches
}

fn assert_same(found: &[SearchResult], expected: &[SearchResult], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.items, expected.items, "{what}");
        let apart = (found.log_probability - expected.log_probability).abs();
        assert!(
            apart <= 1e-5 * expected.log_probability.abs().max(1.0),
            "{what}"
        );
    }
}

/// Both searches to their end on the same logits; the CPU takes them in f64.
fn assert_goes_as_on_the_cpu(
    search: &BeamSearch,
    mut logits: impl FnMut(usize) -> Tensor,
    what: &str,
) {
    let (mut on_cpu, mut on_gpu) = (search.clone(), search.clone());
    while on_cpu.active_beams() > 0 {
        let logits = logits(on_cpu.active_beams());
        let same = logits.to_device(&Device::Cpu).unwrap();
        let expected = on_cpu.step(&same.to_dtype(DType::F64).unwrap()).unwrap();
        assert_eq!(on_gpu.step(&logits).unwrap(), expected, "{what}");
        for user in 0..USERS {
            assert_same(&on_gpu.results(user), &on_cpu.results(user), what);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn every_search_goes_as_on_the_cpu() {
    let device = cuda();
    for (tokens, beams) in [(4, 1), (60, 4), (700, 10), (20_000, 7)] {
        let (trie, width) = (trie(tokens), tokens as usize + 3);
        for dtype in DTYPES {
            for search in searches(&trie, beams) {
                let mut seed = 0;
                let logits = |rows: usize| {
                    seed += 1;
                    let values = noise(seed, rows * width, 5.0);
                    let logits = Tensor::from_vec(values, (rows, width), &device).unwrap();
                    logits.to_dtype(dtype).unwrap()
                };
                let what = format!("{tokens} tokens, {dtype:?}");
                assert_goes_as_on_the_cpu(&search, logits, &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn rows_may_lie_apart() {
    let device = cuda();
    let trie = trie(60);
    for search in searches(&trie, 4) {
        let logits = |rows: usize| {
            let values = noise(rows as u64, rows * 80, 5.0);
            let wide = Tensor::from_vec(values, (rows, 80), &device).unwrap();
            let wide = wide.to_dtype(DType::F32).unwrap();
            wide.narrow(1, 3, 63).unwrap()
        };
        assert_goes_as_on_the_cpu(&search, logits, "apart");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn hidden_states_give_what_their_logits_give() {
    let device = cuda();
    let trie = trie(60);
    let tensor = |seed, shape: (usize, usize)| {
        let values = noise(seed, shape.0 * shape.1, 1.0);
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        tensor.to_dtype(DType::F32).unwrap()
    };
    let head = tensor(1, (61, 8));
    let on_device = head.to_device(&device).unwrap();
    for search in searches(&trie, 4) {
        let (mut on_cpu, mut on_gpu) = (search.clone(), search);
        while on_cpu.active_beams() > 0 {
            let hidden = tensor(2, (on_cpu.active_beams(), 8));
            let expected = on_cpu.step((&hidden, &head)).unwrap();
            let hidden = hidden.to_device(&device).unwrap();
            assert_eq!(on_gpu.step((&hidden, &on_device)).unwrap(), expected);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn an_exact_search_goes_as_on_the_cpu() {
    let device = cuda();
    let excluded: [Vec<u64>; USERS] = [vec![], (0..40).collect(), vec![3, 5, 1000]];
    for (tokens, k) in [(4, 1), (60, 4), (700, 30), (20_000, 7)] {
        let (trie, width) = (trie(tokens), tokens as usize + 3);
        for dtype in DTYPES {
            let search = ExactSearch::new(&trie, USERS, k, 1.5).unwrap();
            let search = search.exclude_items(&excluded).unwrap();
            let (mut on_cpu, mut on_gpu) = (search.clone(), search);
            let mut seed = 0;
            while let Some(expansion) = on_cpu.next_expansion() {
                let what = format!("{tokens} tokens, {dtype:?}, step {seed}");
                assert_eq!(on_gpu.next_expansion().as_ref(), Some(&expansion), "{what}");
                seed += 1;
                let rows = expansion.users.len();
                // Rows that lie apart in every other step.
                let wide = width + 5 * (seed as usize % 2);
                let values = noise(seed, rows * wide, 5.0);
                let logits = Tensor::from_vec(values, (rows, wide), &device).unwrap();
                let logits = logits.to_dtype(dtype).unwrap().narrow(1, 0, width).unwrap();
                let same = logits.to_device(&Device::Cpu).unwrap();
                on_cpu.step(&same.to_dtype(DType::F64).unwrap()).unwrap();
                on_gpu.step(&logits).unwrap();
            }
            for user in 0..USERS {
                let what = format!("{tokens} tokens, {dtype:?}, user {user}");
                assert_same(&on_gpu.results(user), &on_cpu.results(user), &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn an_exact_search_from_hidden_states_goes_as_on_the_cpu() {
    let device = cuda();
    let trie = trie(60);
    let tensor = |seed, rows: usize| {
        let values = noise(seed, rows * 8, 1.0);
        let tensor = Tensor::from_vec(values, (rows, 8), &Device::Cpu).unwrap();
        tensor.to_dtype(DType::F32).unwrap()
    };
    let head = tensor(1, 61);
    let on_device = head.to_device(&device).unwrap();
    let search = ExactSearch::new(&trie, USERS, 4, 1.5).unwrap();
    let (mut on_cpu, mut on_gpu) = (search.clone(), search);
    while let Some(expansion) = on_cpu.next_expansion() {
        assert_eq!(on_gpu.next_expansion().as_ref(), Some(&expansion));
        let hidden = tensor(2, expansion.users.len());
        on_cpu.step((&hidden, &head)).unwrap();
        let hidden = hidden.to_device(&device).unwrap();
        on_gpu.step((&hidden, &on_device)).unwrap();
    }
    for user in 0..USERS {
        assert_same(&on_gpu.results(user), &on_cpu.results(user), "exact");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn what_has_no_kernel_is_refused_and_what_is_no_number_is_named() {
    let device = cuda();
    let mut search = BeamSearch::new(&trie(4), 1, 2, 1.0).unwrap();
    let doubles = Tensor::zeros((1, 9), DType::F64, &device).unwrap();
    let error = search.step(&doubles).unwrap_err().to_string();
    assert!(error.contains("f32, f16 or bf16"), "{error}");
    let no_numbers = Tensor::full(f32::NAN, (1, 9), &device).unwrap();
    let error = search.step(&no_numbers).unwrap_err().to_string();
    assert!(error.contains("token 1"), "{error}");
    let mut search = ExactSearch::new(&trie(4), 1, 2, 1.0).unwrap();
    let error = search.step(&doubles).unwrap_err().to_string();
    assert!(error.contains("f32, f16 or bf16"), "{error}");
    let error = search.step(&no_numbers).unwrap_err().to_string();
    assert!(error.contains("token 1"), "{error}");
}
