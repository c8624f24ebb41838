//! The linear operation's cost as the vocabulary grows: the same batch, its tokens spread over more
//! and more.

mod support;

use std::time::Duration;

use candle_core::{Device, Tensor, Var};
use candle_trie::{FrozenHead, MaskedSoftmaxLoss, Row, Rows, Temperature, TokenSets};
use criterion::{Criterion, criterion_group, criterion_main};
use support::memory::peak_of;
use support::{SMOLLM2, Shape, hidden_states, record, settle_allocator, uniform};

const VOCABULARIES: [usize; 4] = [16_384, 131_072, 524_288, 2_097_152];

fn vocabulary(criterion: &mut Criterion) {
    settle_allocator();
    let mut group = criterion.benchmark_group("vocabulary");
    group.measurement_time(Duration::from_secs(3));
    for size in VOCABULARIES {
        let shape = spread(&Shape::books(), size);
        let rows = &shape.rows;
        let hidden = hidden_states(rows.positions(), SMOLLM2.hidden);
        let hidden = Var::from_tensor(&hidden).unwrap();
        let head = head(&shape, size);
        let frozen = FrozenHead::new(&head, &shape.sets).unwrap();
        let mut loss = MaskedSoftmaxLoss::new(&shape.sets, Temperature::fixed(1.0)).unwrap();
        let mut step = || {
            let output = loss.forward_linear(&hidden, &frozen, rows).unwrap();
            output.loss.backward().unwrap()
        };
        let (peak, gradients) = peak_of(&mut step);
        drop(gradients);
        record(&format!("vocabulary/{size}/peak bytes"), peak as f64);
        group.bench_function(size.to_string(), |bencher| bencher.iter(&mut step));
    }
    group.finish();
}

/// The shape with its distinct tokens spread evenly over a vocabulary.
fn spread(shape: &Shape, vocabulary: usize) -> Shape {
    let (offsets, tokens) = shape.sets.as_raw().expect("listed sets");
    let mut distinct = tokens.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let apart = (vocabulary / distinct.len()) as u32;
    let moved = |token: &u32| distinct.binary_search(token).expect("a token") as u32 * apart;
    let rows = (shape.rows.as_slice().iter())
        .map(|row| Row {
            target: moved(&row.target),
            ..*row
        })
        .collect();
    let tokens = tokens.iter().map(moved).collect();
    Shape {
        sets: TokenSets::from_raw(offsets.to_vec(), tokens).expect("token sets"),
        rows: Rows::from_raw(shape.rows.positions(), rows).expect("rows"),
    }
}

/// A head of which only the rows in use are ever touched, so that the largest fits anywhere.
fn head(shape: &Shape, vocabulary: usize) -> Tensor {
    let width = SMOLLM2.hidden;
    let mut values: Vec<f32> = bytemuck::zeroed_vec(vocabulary * width);
    for token in shape.distinct_tokens() {
        let start = token as usize * width;
        values[start..start + width].copy_from_slice(&uniform(width, 0.1, token.into()));
    }
    Tensor::from_vec(values, (vocabulary, width), &Device::Cpu).expect("a tensor")
}

criterion_group!(benches, vocabulary);
criterion_main!(benches);
