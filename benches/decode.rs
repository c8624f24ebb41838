//! Beam search over a million items of three codes: what the search itself costs beside the model, from few beams to many.

mod support;

use candle_core::{Device, Tensor};
use candle_trie::{BeamSearch, TokenTrie};
use criterion::{Criterion, criterion_group, criterion_main};
use support::{of_the_host, settle_allocator};

const ITEMS: usize = 1_000_000;
const LEVELS: usize = 3;
const CODES: usize = 256;
const BEAMS: [usize; 4] = [10, 50, 256, 1000];

fn catalogue() -> TokenTrie {
    let codes = support::uniform(ITEMS * LEVELS, 0.5, 7);
    let token = |level: usize, code: f32| (level * CODES) as u32 + ((code + 0.5) * 256.0) as u32;
    let paths = (codes.chunks(LEVELS).zip(0..)).map(|(codes, id)| {
        let path: Vec<u32> = (0..).zip(codes).map(|(l, &code)| token(l, code)).collect();
        (id, path)
    });
    TokenTrie::new(paths).expect("a trie")
}

fn decode(criterion: &mut Criterion) {
    of_the_host("decode");
    settle_allocator();
    let trie = catalogue();
    let most = BEAMS[BEAMS.len() - 1];
    let logits = support::uniform(most * LEVELS * CODES, 3.0, 3);
    let logits = Tensor::from_vec(logits, (most, LEVELS * CODES), &Device::Cpu).expect("logits");
    let seen: Vec<u64> = (0..100).map(|item| item * 9973).collect();
    let mut group = criterion.benchmark_group("decode");
    for width in BEAMS {
        group.bench_function(format!("{width} beams"), |bencher| {
            bencher.iter(|| {
                let search = BeamSearch::new(&trie, 1, width, 1.0).expect("a search");
                let mut search = search.exclude_items(&[&seen]).expect("a search");
                let rows = |search: &BeamSearch| logits.narrow(0, 0, search.active_beams());
                while let Some(step) = search.step(&rows(&search).expect("rows")).expect("a step") {
                    std::hint::black_box(step);
                }
                search.results(0)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
