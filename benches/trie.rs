//! Building a trie of random paths: 8 tokens over 8,192 codes a level, as semantic ids have them.

mod support;

use std::time::{Duration, Instant};

use candle_trie::TokenTrie;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use support::memory::peak_of;
use support::{of_the_host, record, settle_allocator};

const LENGTH: usize = 8;
const CODES: u32 = 8192;

struct Paths {
    ids: Vec<u64>,
    offsets: Vec<usize>,
    tokens: Vec<u32>,
}

impl Paths {
    fn random(count: usize) -> Self {
        let codes = support::uniform(count * LENGTH, 0.5, 7);
        let token = |(index, code): (usize, f32)| {
            let level = (index % LENGTH) as u32;
            level * CODES + ((code + 0.5) * CODES as f32) as u32
        };
        Self {
            ids: (0..count as u64).collect(),
            offsets: (0..=count).map(|path| path * LENGTH).collect(),
            tokens: codes.into_iter().enumerate().map(token).collect(),
        }
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.ids) + size_of_val(&*self.offsets) + size_of_val(&*self.tokens)
    }

    fn build(&self) -> TokenTrie {
        TokenTrie::from_paths(&self.ids, &self.offsets, &self.tokens).expect("a trie")
    }
}

fn trie(criterion: &mut Criterion) {
    of_the_host("trie");
    settle_allocator();
    let mut group = criterion.benchmark_group("trie");
    group.sample_size(10).warm_up_time(Duration::from_millis(1));
    for count in [1_000_000, 10_000_000] {
        let paths = Paths::random(count);
        measure_memory(count, &paths);
        group.bench_function(count.to_string(), |bencher| {
            // The trie is dropped outside the time.
            bencher.iter_batched(|| (), |()| paths.build(), BatchSize::PerIteration);
        });
    }
    group.finish();
    // More than most machines hold: once, where asked for.
    if let Ok(count) = std::env::var("BENCHMARK_TRIE_PATHS") {
        let count = count
            .parse()
            .expect("BENCHMARK_TRIE_PATHS is a number of paths");
        let paths = Paths::random(count);
        let start = Instant::now();
        measure_memory(count, &paths);
        record(
            &format!("trie/{count}/seconds"),
            start.elapsed().as_secs_f64(),
        );
    }
}

fn measure_memory(count: usize, paths: &Paths) {
    let (peak, trie) = peak_of(|| paths.build());
    let input = paths.bytes();
    record(&format!("trie/{count}/input bytes"), input as f64);
    record(&format!("trie/{count}/peak bytes"), (input + peak) as f64);
    record(&format!("trie/{count}/nodes"), trie.node_count() as f64);
    let (offsets, tokens) = trie.sets().as_raw().expect("listed sets");
    let bytes = size_of_val(offsets) + size_of_val(tokens);
    record(&format!("trie/{count}/set bytes"), bytes as f64);
}

criterion_group!(benches, trie);
criterion_main!(benches);
