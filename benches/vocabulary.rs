//! The linear operation's cost as the vocabulary grows: the same batch, its tokens spread over more
//! and more.

mod support;

use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use candle_trie::{FrozenHead, MaskedSoftmaxLoss, Row, Rows, Temperature, TokenSets};
use support::memory::peak_of;
use support::{SMOLLM2, Shape, hidden_states, of_the_host, record, settle_allocator, uniform};

const VOCABULARIES: [usize; 4] = [16_384, 131_072, 524_288, 2_097_152];
const ROUNDS: usize = 200;

fn main() {
    of_the_host("vocabulary");
    settle_allocator();
    let mut steps: Vec<_> = (VOCABULARIES.iter())
        .map(|&size| {
            let mut step = step(size);
            let (peak, gradients) = peak_of(&mut step);
            drop(gradients);
            record(&format!("vocabulary/{size}/peak bytes"), peak as f64);
            (size, step, Vec::with_capacity(ROUNDS))
        })
        .collect();
    // Round by round, so that a second in which the machine is busy meets all sizes alike.
    for _ in 0..ROUNDS {
        for (_, step, seconds) in &mut steps {
            let start = Instant::now();
            drop(step());
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    for (size, _, seconds) in &mut steps {
        seconds.sort_by(f64::total_cmp);
        record(&format!("vocabulary/{size}/seconds"), seconds[ROUNDS / 2]);
    }
}

/// A training step's share: forward and backward over a vocabulary of this size.
fn step(size: usize) -> impl FnMut() -> GradStore {
    let shape = spread(&Shape::books(), size);
    let hidden = hidden_states(shape.rows.positions(), SMOLLM2.hidden, &Device::Cpu);
    let hidden = Var::from_tensor(&hidden).expect("a variable");
    let frozen = FrozenHead::new(&head(&shape, size), &shape.sets).expect("a head");
    let temperature = Temperature::fixed(1.0);
    let mut loss = MaskedSoftmaxLoss::new(&shape.sets, temperature).expect("a loss");
    move || {
        let output = loss.forward((&hidden, &frozen), &shape.rows);
        output
            .and_then(|output| Ok(output.loss.backward()?))
            .expect("gradients")
    }
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
