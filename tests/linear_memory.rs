//! The linear operation allocates nothing of N × V, nor of V × H: counted at the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use candle_trie::{
    AdaptiveStrategy, FrozenHead, MaskedSoftmaxLoss, Rows, Scope, TokenSets, TokenTrie,
};

struct Counting;

static ALIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let alive = ALIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(alive, Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let alive = ALIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(alive, Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The bytes that `run` held beyond what was held before it, at its highest.
fn peak_of<T>(run: impl FnOnce() -> T) -> (usize, T) {
    let before = ALIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = run();
    (PEAK.load(Relaxed) - before, result)
}

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

// One test, so that nothing else allocates beside what is counted.
#[test]
fn memory_and_time_of_the_linear_operation_do_not_depend_on_the_vocabulary() {
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
            let frozen_output = loss.forward_linear(&hidden, &frozen, &rows).unwrap();
            let output = loss.forward_linear(&hidden, &head, &rows).unwrap();
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
        lml.forward_linear_at(&hidden, &head.detach(), &rows, 1.0)
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
