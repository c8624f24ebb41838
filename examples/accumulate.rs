//! Accumulates gradients over micro-batches of unequal size, as if they were one batch: each divides by the rows of all, their
//! statistics are merged, and the adaptive temperature takes one step.
//!
//! Several devices or processes do the same. Each computes the loss of its part at the same temperature and over the same denominator,
//! then gradients are summed, statistics are gathered and merged, and every process takes the same step.
//!
//! ```sh
//! cargo run --release --example accumulate
//! ```

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use candle_nn::{Optimizer, SGD};
use candle_trie::{
    AdaptiveStrategy, MaskedSoftmaxLoss, Reduction, Rows, Scope, Statistics, TokenTrie,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::Cpu;
    let trie =
        TokenTrie::new((0..40u32).map(|item| (u64::from(item), [item % 8, 8 + item / 8, 13])))?;
    let strategy = AdaptiveStrategy {
        scope: Scope::Branching,
        ..Default::default()
    };
    let mut loss = MaskedSoftmaxLoss::new(&trie, strategy)?;

    // A model: one hidden state for each token that was read.
    let embedding = Var::randn(0f32, 1.0, (16, 8), &device)?;
    let head = Tensor::randn(0f32, 1.0, (14, 8), &device)?; // [V, H]
    let hidden = |tokens: &[u32]| embedding.index_select(&Tensor::new(tokens, &device)?, 0);
    let mut optimizer = SGD::new(vec![embedding.clone()], 0.5)?;

    // Two micro-batches: the tokens that are read, and what is to follow each of them.
    let micro_batches: [(&[u32], Vec<Vec<i64>>); 2] = [
        (&[15, 3, 9], vec![vec![3, 9, 13]]),
        (
            &[15, 0, 8, 15, 7, 12],
            vec![vec![0, 8, 13], vec![7, 12, 13]],
        ),
    ];

    for step in 0..20 {
        let rows = (micro_batches.iter())
            .map(|(_, labels)| Rows::from_shifted(&trie, labels))
            .collect::<Result<Vec<_>, _>>()?;
        // An adaptive temperature divides by the branching rows. Here these are the branching rows of the whole batch.
        let branching: usize = (rows.iter())
            .map(|rows| rows.branching_count(trie.sets()))
            .sum();
        loss.set_reduction(Reduction::MeanOver(branching as f64))?;

        // All at the temperature as it stands; the step below is for the next batch. Where the step should come first, ask
        // `loss.statistics` of every micro-batch beforehand.
        let temperature = loss.temperature()?.value();
        let mut statistics = Statistics::default();
        let mut gradients: Option<GradStore> = None;
        let mut total = 0.0;
        for ((tokens, _), rows) in micro_batches.iter().zip(&rows) {
            let output = loss.forward_at((&hidden(tokens)?, &head), rows, temperature)?;
            statistics = statistics.merge(&output.read_statistics()?);
            total += output.loss.to_scalar::<f32>()?;
            let of_this = output.loss.backward()?;
            match &mut gradients {
                Some(gradients) => gradients.extend(of_this)?, // adds
                None => gradients = Some(of_this),
            }
        }
        let gradients = gradients.ok_or("there is no micro-batch")?;
        if step == 0 {
            let difference =
                difference_to_one_batch(&loss, &trie, &embedding, &head, temperature, &gradients)?;
            println!(
                "gradient of the micro-batches against that of one batch: at most {difference:e} apart"
            );
            assert!(difference < 1e-5);
        }
        optimizer.step(&gradients)?;
        loss.temperature_mut()?.step(&statistics, step)?;
        if step % 5 == 0 {
            // Without the factor τ of the convention.
            let mean = f64::from(total) / temperature;
            println!("step {step}: loss {mean:.4} at temperature {temperature:.3}");
        }
    }
    Ok(())
}

/// Returns the largest difference between accumulated gradients of the embedding and the gradient of the same rows as one batch.
fn difference_to_one_batch(
    loss: &MaskedSoftmaxLoss,
    trie: &TokenTrie,
    embedding: &Var,
    head: &Tensor,
    temperature: f64,
    gradients: &GradStore,
) -> Result<f32, Box<dyn std::error::Error>> {
    let tokens = Tensor::new(&[15u32, 3, 9, 15, 0, 8, 15, 7, 12], head.device())?;
    let labels = vec![vec![3i64, 9, 13], vec![0, 8, 13], vec![7, 12, 13]];
    let rows = Rows::from_shifted(trie, &labels)?;
    let one_batch = loss.clone().with_reduction(Reduction::MeanOverBranching)?;
    let output = one_batch.forward_at(
        (&embedding.index_select(&tokens, 0)?, head),
        &rows,
        temperature,
    )?;
    let expected = output.loss.backward()?;
    let of = |gradients: &GradStore| gradients.get(embedding).cloned().ok_or("no gradient");
    let difference = (of(gradients)? - of(&expected)?)?;
    Ok(difference.abs()?.max_all()?.to_scalar()?)
}
