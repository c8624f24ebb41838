//! The loss over given logits, beside what writing the gradient costs at the least; with the feature
//! `cuda` on a GPU.

mod support;

use std::time::Duration;

use candle_core::{DType, Device, Tensor, Var};
use candle_trie::{GradientTarget, MaskedSoftmaxLoss, Temperature, TokenSet};
use criterion::{Bencher, Criterion, criterion_group, criterion_main};
use rayon::prelude::*;
use support::memory::peak_of;
use support::{SMOLLM2, Shape, record, to_the_end, uniform};

fn dense(criterion: &mut Criterion) {
    let device = &support::device();
    let shape = Shape::books();
    let rows = &shape.rows;
    let (positions, vocabulary) = (rows.positions(), SMOLLM2.vocabulary);
    let values = uniform(positions * vocabulary, 4.0, 6);
    let logits = Tensor::from_vec(values, (positions, vocabulary), device).unwrap();
    let mut loss = MaskedSoftmaxLoss::new(&shape.sets, Temperature::fixed(1.0)).unwrap();
    let mut group = criterion.benchmark_group("given logits");
    group
        .sample_size(50)
        .measurement_time(Duration::from_secs(3));

    let gradient = Tensor::ones((positions, vocabulary), DType::F32, device).unwrap();
    group.bench_function("fill of reused memory", |bencher| match device {
        Device::Cpu => bench_fill(bencher, positions, vocabulary),
        _ => bencher.iter(|| to_the_end(device, || gradient.zero_set().unwrap())),
    });
    group.bench_function("gradient into reused memory", |bencher| {
        bencher.iter(|| {
            to_the_end(device, || {
                loss.value_and_gradient(&logits, rows, GradientTarget::Into(&gradient))
                    .unwrap()
            })
        });
    });
    drop(gradient);

    if device.is_cpu() {
        group.bench_function("writes into lazily zeroed memory", |bencher| {
            bencher.iter(|| lazily_zeroed(&shape, vocabulary));
        });
    }
    group.bench_function("gradient into fresh memory", |bencher| {
        bencher.iter(|| {
            to_the_end(device, || {
                loss.value_and_gradient(&logits, rows, GradientTarget::New)
                    .unwrap()
            })
        });
    });

    let logits = Var::from_tensor(&logits).unwrap();
    group.bench_function("forward", |bencher| {
        bencher.iter(|| to_the_end(device, || loss.evaluate(&logits, rows).unwrap()));
    });
    let mut step = || {
        to_the_end(device, || {
            let output = loss.forward(&logits, rows).unwrap();
            output.loss.backward().unwrap()
        })
    };
    if device.is_cpu() {
        let (peak, gradients) = peak_of(&mut step);
        drop(gradients);
        record("given logits/forward and backward/peak bytes", peak as f64);
    }
    record(
        "given logits/gradient bytes",
        (positions * vocabulary * size_of::<f32>()) as f64,
    );
    group.sample_size(10);
    group.bench_function("forward and backward", |bencher| bencher.iter(&mut step));
    group.finish();
}

fn bench_fill(bencher: &mut Bencher, positions: usize, vocabulary: usize) {
    let mut reused = vec![1f32; positions * vocabulary];
    bencher.iter(|| {
        let rows = reused.par_chunks_mut(vocabulary);
        rows.for_each(|row| row.fill(0.0));
    });
}

/// As many values as the gradient has, written where it has them, into memory that the system
/// zeroes when it is first touched.
fn lazily_zeroed(shape: &Shape, vocabulary: usize) -> Vec<f32> {
    let mut values: Vec<f32> = bytemuck::zeroed_vec(shape.rows.positions() * vocabulary);
    (values.par_chunks_mut(vocabulary).zip(shape.rows.as_slice())).for_each(|(values, row)| {
        let Some(TokenSet::Listed(tokens @ [_, _, ..])) = shape.sets.get(row.set) else {
            return;
        };
        tokens
            .iter()
            .for_each(|&token| values[token as usize] = 1.0);
    });
    values
}

criterion_group!(benches, dense);
criterion_main!(benches);
