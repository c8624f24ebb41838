//! The loss layer of three models on one batch of a real catalogue, and of a fourth on semantic IDs: ours from hidden states, ours
//! from logits, and candle's own operations; forward and backward to the hidden states; with the
//! feature `cuda` on a GPU.

mod support;

use std::time::{Duration, Instant};

use candle_core::{Device, Result, Tensor, Var};
use candle_trie::{AdaptiveStrategy, FrozenHead, MaskedSoftmaxLoss, Scope, Temperature};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use rayon::prelude::*;
use support::composed::Composed;
use support::memory::peak_of;
use support::{
    MODELS, Model, SEMANTIC_IDS, SMOLLM2, Shape, head, hidden_states, record, settle_allocator,
    to_the_end, uniform,
};

/// How often the ways that take seconds are run.
const SLOW_RUNS: usize = 3;

/// A way to the loss, differentiable in the hidden states.
type Way<'a> = (&'a str, Box<dyn FnMut(&Tensor) -> Result<Tensor> + 'a>);

fn model(criterion: &mut Criterion, model: &Model, shape: &Shape, device: &Device) {
    let rows = &shape.rows;
    let hidden = Var::from_tensor(&hidden_states(rows.positions(), model.hidden, device)).unwrap();
    let head = head(model, device);
    let frozen = FrozenHead::new(&head, &shape.sets);
    let frozen = || (frozen.as_ref()).map_err(|error| candle_core::Error::msg(error.to_string()));
    let composed = Composed::new(shape, model.vocabulary, device).unwrap();
    let fixed = || MaskedSoftmaxLoss::new(&shape.sets, Temperature::fixed(1.0)).unwrap();
    let (mut linear, mut dense) = (fixed(), fixed());
    let strategy = AdaptiveStrategy {
        scope: Scope::Branching,
        ..AdaptiveStrategy::default()
    };
    let mut adaptive = MaskedSoftmaxLoss::new(&shape.sets, strategy).unwrap();

    let mut ways: [Way; 4] = [
        (
            "linear",
            Box::new(|hidden| Ok(linear.forward((hidden, frozen()?), rows)?.loss)),
        ),
        (
            "linear, adaptive temperature",
            Box::new(|hidden| Ok(adaptive.forward((hidden, frozen()?), rows)?.loss)),
        ),
        (
            "dense",
            Box::new(|hidden| Ok(dense.forward(&hidden.matmul(&head.t()?)?, rows)?.loss)),
        ),
        ("composed", Box::new(|hidden| composed.loss(hidden, &head))),
    ];
    let mut group = criterion.benchmark_group(model.name);
    // Beside the way whose floor it makes: the speed of a shared machine changes by the minute.
    matrix_product(&mut group, device);
    let mut results = Vec::new();
    for (name, way) in &mut ways {
        if !device.is_cpu()
            && let Err(error) = way(&hidden)
        {
            eprintln!("{}/{name}: not measured: {error}", model.name);
            continue;
        }
        let mut step = || {
            to_the_end(device, || {
                let loss = way(&hidden).unwrap();
                let gradients = loss.backward().unwrap();
                (loss, gradients.get(&hidden).unwrap().clone())
            })
        };
        // criterion wants ten samples at the least. Of what takes seconds it is given the median of a
        // few runs, and asked for no more.
        let slow = device.is_cpu() && !name.starts_with("linear");
        let shortest = Duration::from_nanos(1);
        group.sample_size(if slow { 10 } else { 100 });
        group.warm_up_time(if slow {
            shortest
        } else {
            Duration::from_secs(1)
        });
        group.measurement_time(if slow {
            shortest
        } else {
            Duration::from_secs(3)
        });
        let mut few = Vec::new();
        group.bench_function(*name, |bencher| {
            if few.is_empty() {
                if !slow {
                    step(); // Memory that is kept from call to call is not a step's.
                }
                let (peak, (loss, gradient)) = peak_of(&mut step);
                let output = gradient.elem_count() * size_of::<f32>();
                if device.is_cpu() {
                    let figure = format!("{}/{name}/peak bytes", model.name);
                    record(&figure, (peak - output) as f64);
                }
                results.push((*name, loss, gradient));
                let runs = if slow { SLOW_RUNS } else { 1 };
                few.extend((0..runs).map(|_| time(&mut step)));
                few.sort();
            }
            if slow {
                let median = few[SLOW_RUNS / 2];
                bencher.iter_custom(|iterations| median.mul_f64(iterations as f64));
            } else {
                bencher.iter(&mut step);
            }
        });
    }
    group.finish();
    for name in ["linear", "dense"] {
        agree(&results, name, "composed");
    }
    record(
        &format!("{}/flops", model.name),
        // Two products, a multiplication and an addition a pair.
        (4 * shape.branching_logits() * model.hidden) as f64,
    );
    record(
        &format!("{}/head bytes", model.name),
        (shape.distinct_tokens().len() * model.hidden * size_of::<f32>()) as f64,
    );
    if device.is_cpu() {
        frozen_bytes(shape, model, &head);
    }
}

fn time<T>(run: &mut impl FnMut() -> T) -> Duration {
    let start = Instant::now();
    let result = run();
    drop(result);
    start.elapsed()
}

/// What is compared must be the same thing.
fn agree(results: &[(&str, Tensor, Tensor)], ours: &str, theirs: &str) {
    let find = |name: &str| results.iter().find(|result| result.0 == name);
    let (Some((_, loss, gradient)), Some((_, their_loss, their_gradient))) =
        (find(ours), find(theirs))
    else {
        return; // One of them was not asked for.
    };
    let largest = |tensor: &Tensor| -> Result<f32> { tensor.abs()?.max_all()?.to_scalar() };
    let apart =
        |a: &Tensor, b: &Tensor| Ok::<_, candle_core::Error>(largest(&(a - b)?)? / largest(b)?);
    let loss = apart(loss, their_loss).unwrap();
    let gradient = apart(gradient, their_gradient).unwrap();
    assert!(
        loss < 1e-5 && gradient < 1e-4,
        "{ours} and {theirs}: {loss} {gradient}"
    );
}

fn frozen_bytes(shape: &Shape, model: &Model, head: &Tensor) {
    let (peak, _) = peak_of(|| FrozenHead::new(head, &shape.sets).unwrap());
    record(&format!("{}/frozen head bytes", model.name), peak as f64);
}

/// The rate that the floor of the linear way is computed from.
fn matrix_product(group: &mut BenchmarkGroup<WallTime>, device: &Device) {
    const SIDE: usize = 2048;
    let square = |seed| {
        let values = uniform(SIDE * SIDE, 1.0, seed);
        Tensor::from_vec(values, (SIDE, SIDE), device).unwrap()
    };
    let (left, right) = (square(3), square(4));
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(2));
    group.bench_function("matrix product", |bencher| {
        bencher.iter(|| to_the_end(device, || left.matmul(&right).unwrap()));
    });
    record("matrix product/flops", 2.0 * (SIDE as f64).powi(3));
}

/// What else the machine can do.
fn machine(criterion: &mut Criterion) {
    const READ: usize = 1 << 27;
    if !support::device().is_cpu() {
        return; // benches/kernels.rs measures a device's memory.
    }
    let mut group = criterion.benchmark_group("machine");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(2));
    let values = uniform(READ, 1.0, 5);
    group.bench_function("read", |bencher| {
        bencher.iter(|| -> f32 { values.par_chunks(1 << 16).map(sum).sum() });
    });
    record("machine/read/bytes", (READ * size_of::<f32>()) as f64);
    drop(values);
    let mut logits = vec![1.0f32; Shape::books().rows.positions() * SMOLLM2.vocabulary];
    group.bench_function("fill", |bencher| {
        bencher.iter(|| {
            let rows = logits.par_chunks_mut(SMOLLM2.vocabulary);
            rows.for_each(|row| row.fill(0.0));
        });
    });
    group.finish();
}

/// A sum in independent lanes: as fast as memory.
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0; 64];
    for values in values.chunks_exact(lanes.len()) {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += value;
        }
    }
    lanes.iter().sum()
}

fn models(criterion: &mut Criterion) {
    let device = support::device();
    settle_allocator();
    let books = Shape::books();
    record("rows", books.rows.len() as f64);
    for shape in &MODELS {
        model(criterion, shape, &books, &device);
    }
    model(criterion, &SEMANTIC_IDS, &SEMANTIC_IDS.batch(), &device);
}

criterion_group!(benches, machine, models);
criterion_main!(benches);
