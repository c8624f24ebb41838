//! The linear operation allocates nothing of N × V, nor of V × H.

use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use candle_trie::{
    AdaptiveStrategy, FrozenHead, Head, MaskedSoftmaxLoss, Rows, Scope, TokenSets, TokenTrie,
};

use crate::{alone, peak_of};

const WIDTH: usize = 16;
const POSITIONS: usize = 64;

/// A trie of 500 items over the last tokens of the vocabulary, so that nothing could be saved by
/// stopping early.
fn trie(vocabulary: usize) -> TokenTrie {
    let token = |rank: usize| (vocabulary - 1 - rank) as u32;
    let path = |item: usize| [token(1 + item % 100), token(101 + item / 100), token(0)];
    TokenTrie::new((0..500).map(|item| (item as u64, path(item)))).unwrap()
}

fn rows(trie: &TokenTrie, vocabulary: usize) -> Rows {
    let token = |rank: usize| (vocabulary - 1 - rank) as i64;
    let labels: Vec<Vec<i64>> = (0..POSITIONS / 4)
        .map(|item| vec![-100, token(1 + item), token(101 + item % 5), token(0)])
        .collect();
    Rows::from_unshifted(trie, &labels).unwrap()
}

#[test]
fn memory_and_time_of_the_linear_operation_do_not_depend_on_the_vocabulary() {
    let _alone = alone();
    let strategy = AdaptiveStrategy {
        scope: Scope::Branching,
        ..AdaptiveStrategy::default()
    };
    let mut measured = Vec::new();
    for vocabulary in [16_000, 2_000_000] {
        let trie = trie(vocabulary);
        let rows = rows(&trie, vocabulary);
        let head = Tensor::zeros((vocabulary, WIDTH), DType::F32, &Device::Cpu).unwrap();
        let hidden = Var::ones((POSITIONS, WIDTH), DType::F32, &Device::Cpu).unwrap();
        let mut loss = MaskedSoftmaxLoss::new(&trie, strategy).unwrap();
        let mut step = || {
            let start = Instant::now();
            let frozen = FrozenHead::new(&head, &trie).unwrap();
            let frozen_output = loss.forward((&hidden, &frozen), &rows).unwrap();
            let output = loss.forward((&hidden, &head), &rows).unwrap();
            frozen_output.loss.backward().unwrap();
            output.loss.backward().unwrap();
            start.elapsed()
        };
        step();
        let (peak, _) = peak_of(&mut step);
        let fastest = (0..20).map(|_| step()).min().unwrap();
        measured.push((vocabulary, peak, fastest));
    }
    let [
        (_, small_peak, small_time),
        (vocabulary, large_peak, large_time),
    ] = measured[..]
    else {
        unreachable!()
    };
    let logits = POSITIONS * vocabulary * 4;
    let head = vocabulary * WIDTH * 4;
    assert!(
        large_peak < logits.min(head) / 100,
        "{large_peak} bytes at V = {vocabulary}"
    );
    assert!(
        large_peak < 2 * small_peak,
        "{small_peak} bytes became {large_peak}"
    );
    assert!(
        large_time < 5 * small_time,
        "{small_time:?} became {large_time:?}"
    );

    // The head's gradient is one [V, H], and the plain language-model loss makes no [N, V].
    let vocabulary = 200_000;
    let head = Var::zeros((vocabulary, WIDTH), DType::F32, &Device::Cpu).unwrap();
    let hidden = Var::ones((POSITIONS, WIDTH), DType::F32, &Device::Cpu).unwrap();
    let rows = rows(&trie(vocabulary), vocabulary);
    let sets = TokenSets::whole_vocabulary(vocabulary).unwrap();
    let lml = MaskedSoftmaxLoss::new(sets, candle_trie::Temperature::fixed(1.0)).unwrap();
    let (peak, _) = peak_of(|| {
        lml.forward_at((&hidden, &head.detach()), &rows, 1.0)
            .unwrap()
            .loss
            .backward()
            .unwrap()
    });
    assert!(
        peak < POSITIONS * vocabulary * 4 / 3,
        "{peak} bytes for LML at V = {vocabulary}"
    );
}

#[test]
fn added_rows_are_trained_without_a_copy_or_a_gradient_of_the_frozen_ones() {
    let _alone = alone();
    const BASE_ROWS: usize = 2_000_000;
    // Enough for every token of the trie.
    const ADDED: usize = 120;
    let vocabulary = BASE_ROWS + ADDED;
    let base = Tensor::zeros((BASE_ROWS, WIDTH), DType::F32, &Device::Cpu).unwrap();
    let added = Var::ones((ADDED, WIDTH), DType::F32, &Device::Cpu).unwrap();
    let hidden = Var::ones((POSITIONS, WIDTH), DType::F32, &Device::Cpu).unwrap();
    let (trie, whole) = (
        trie(vocabulary),
        TokenSets::whole_vocabulary(vocabulary).unwrap(),
    );
    let rows = rows(&trie, vocabulary);
    let bytes = BASE_ROWS * WIDTH * 4;
    // Over the whole vocabulary a chunk of 8 MiB of logits is held, and in matrix products each thread holds about 1 MiB.
    for sets in [trie.sets().clone(), whole] {
        let loss = MaskedSoftmaxLoss::new(sets, candle_trie::Temperature::fixed(1.0)).unwrap();
        let head = Head::with_added_rows(&base, &added);
        let (peak, gradients) = peak_of(|| {
            let output = loss.forward_at((&hidden, head), &rows, 1.0).unwrap();
            output.loss.backward().unwrap()
        });
        assert!(peak < bytes / 2, "{peak} bytes beside {bytes} of the base");
        let gradient = gradients.get(&added).unwrap();
        assert_eq!(gradient.dims(), [ADDED, WIDTH]);
        let sum = gradient.abs().unwrap().sum_all().unwrap();
        assert!(sum.to_scalar::<f32>().unwrap() > 0.0);
    }
}
