//! The training loop.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{Tensor, Var, backprop::GradStore};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use candle_trie::{FrozenHead, Head, LossOutput, MaskedSoftmaxLoss, Rows, Statistics, TokenTrie};
use rand::seq::SliceRandom;
use serde::Serialize;

use crate::{
    batch::{Batch, Reading, longest_response, response_rows},
    metrics::StepMetrics,
    model::Llama,
    progress::Progress,
    random::{Purpose, noise, random},
    responses::Example,
    settings::{LossKind, LossSettings, TrainingSettings},
    workers::Workers,
};

/// Rows that go through the model together: few enough for the caches, and the unit of work for the threads. It depends
/// on the model alone, so that a run does not depend on how many threads there are.
fn shard_rows(model: &Llama) -> usize {
    if model.config().hidden_size < 512 {
        16
    } else {
        2
    }
}

/// What came of a training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trained {
    /// Optimizer steps.
    pub steps: usize,
    /// Mean loss of the first tenth of the steps.
    pub first_loss: f64,
    /// Mean loss of the last tenth of the steps.
    pub last_loss: f64,
    /// The temperature at the end.
    pub temperature: f64,
    /// How long it took.
    pub seconds: f64,
    /// Labelled rows by second.
    pub rows_per_second: f64,
}

/// A model on its way: the loss and the optimizer with their state.
pub struct Trainer<'a> {
    model: &'a Llama,
    trie: &'a TokenTrie,
    settings: &'a TrainingSettings,
    loss: MaskedSoftmaxLoss,
    /// Looks at the statistics where the loss does not.
    observer: MaskedSoftmaxLoss,
    /// Where the head is not trained and the trie masks the loss.
    frozen_head: Option<FrozenHead>,
    optimizer: AdamW,
    weights: Vec<Var>,
    workers: Workers,
    reading: Reading,
}

impl<'a> Trainer<'a> {
    /// Fails where the loss is not defined for this trie, before anything is trained.
    pub fn new(
        model: &'a Llama,
        trie: &'a TokenTrie,
        loss: &LossSettings,
        settings: &'a TrainingSettings,
    ) -> Result<Self> {
        settings.check()?;
        let weights: Vec<Var> = model
            .parameters()
            .iter()
            .map(|(_, weight)| weight.clone())
            .collect();
        let parameters = ParamsAdamW {
            lr: settings.learning_rate,
            weight_decay: 0.0,
            ..ParamsAdamW::default()
        };
        Ok(Self {
            model,
            trie,
            settings,
            loss: loss.build(trie, model.config().vocab_size)?,
            observer: loss.observer(trie)?,
            frozen_head: match model.head().track_op() || loss.loss == LossKind::Lml {
                true => None,
                false => Some(FrozenHead::new(model.head(), trie)?),
            },
            optimizer: AdamW::new(weights.clone(), parameters)?,
            weights,
            workers: Workers::new()?,
            reading: match loss.loss {
                LossKind::Msl | LossKind::Ats if !settings.read_unary_tail => Reading::Chosen,
                _ => Reading::Whole,
            },
        })
    }

    /// The loss, with its temperature as it stands.
    pub fn loss(&self) -> &MaskedSoftmaxLoss {
        &self.loss
    }

    /// Trains on examples; `record` gets every step.
    pub fn train(
        &mut self,
        label: &str,
        examples: &[Example],
        mut record: impl FnMut(&StepMetrics) -> Result<()>,
    ) -> Result<Trained> {
        let steps = self.settings.epochs * examples.len().div_ceil(self.settings.batch_size);
        let mut order: Vec<&Example> = examples.iter().collect();
        let mut random = random(self.settings.seed, Purpose::Order);
        let mut metrics: Vec<StepMetrics> = Vec::with_capacity(steps);
        let mut progress = Progress::new(label, steps);
        for _ in 0..self.settings.epochs {
            order.shuffle(&mut random);
            for examples in order.chunks(self.settings.batch_size) {
                let step = self.step(examples, metrics.len(), steps)?;
                record(&step)?;
                progress.detail(format!(
                    "loss {:.3}, temperature {:.3}",
                    step.loss, step.temperature
                ));
                progress.advance(1);
                metrics.push(step);
            }
        }
        Ok(self.summary(&metrics, progress.finish().as_secs_f64()))
    }

    fn step(&mut self, examples: &[&Example], step: usize, steps: usize) -> Result<StepMetrics> {
        let begun = Instant::now();
        let shards = self.shards(examples)?;
        let hidden = self.hidden(&shards, step)?;
        let joined = Tensor::cat(&hidden.iter().map(Tensor::detach).collect::<Vec<_>>(), 0)?;
        let joined = Var::from_tensor(&joined)?;
        let rows = response_rows(examples, self.trie)?;
        let (output, statistics) = self.response_loss(&joined, &rows)?;
        let loss: f64 = output.loss.to_scalar::<f32>()?.into();
        if !loss.is_finite() {
            bail!(
                "the loss of step {} is {loss}: try a lower --learning-rate",
                step + 1
            );
        }
        let mut gradients = output.loss.backward()?;
        let upstream = gradients
            .remove(&joined)
            .context("the hidden states have no gradient")?;
        self.add_gradients(&mut gradients, &hidden, &upstream)?;
        let gradient_norm = clip(&mut gradients, &self.weights, self.settings.clip)?;
        let learning_rate = self.settings.learning_rate_at(step, steps);
        self.optimizer.set_learning_rate(learning_rate);
        self.optimizer.step(&gradients)?;
        let tokens: usize = shards.iter().map(|shard| shard.token_count).sum();
        let observed = |value: f64| (statistics.rows() > 0 && value.is_finite()).then_some(value);
        Ok(StepMetrics {
            step: step + 1,
            loss,
            temperature: output.read_temperature()?,
            positive_mean: observed(statistics.target_mean()),
            mean: observed(statistics.mean()),
            variance: observed(statistics.variance()),
            gradient_norm,
            rows: output.labelled_rows,
            tokens,
            learning_rate,
            tokens_per_second: tokens as f64 / begun.elapsed().as_secs_f64(),
        })
    }

    fn shards(&self, examples: &[&Example]) -> Result<Vec<Batch>> {
        let longest = longest_response(examples);
        let shards = examples.chunks(shard_rows(self.model));
        shards
            .map(|shard| Batch::new(shard, longest, self.reading))
            .collect()
    }

    /// The hidden states that predict the responses, shard by shard.
    fn hidden(&self, shards: &[Batch], step: usize) -> Result<Vec<Tensor>> {
        self.workers.map(shards.len(), |index| {
            let noise = noise(self.settings.seed, step, index);
            let shard = &shards[index];
            shard.response_hidden(&self.model.hidden_in_training(&shard.tokens, noise)?)
        })
    }

    /// Goes back through the shards from the gradient of their hidden states. The sums are taken in the order of the
    /// shards, so that they do not depend on the threads.
    fn add_gradients(
        &self,
        sums: &mut GradStore,
        hidden: &[Tensor],
        upstream: &Tensor,
    ) -> Result<()> {
        let gradients = self.workers.map(hidden.len(), |shard| {
            let hidden = &hidden[shard];
            let upstream = upstream.narrow(0, shard * shard_rows(self.model), hidden.dim(0)?)?;
            Ok((hidden * upstream)?.sum_all()?.backward()?)
        })?;
        for weight in &self.weights {
            for gradient in gradients
                .iter()
                .filter_map(|gradients| gradients.get(weight))
            {
                let sum = match sums.remove(weight) {
                    Some(sum) => (sum + gradient)?,
                    None => gradient.clone(),
                };
                sums.insert(weight, sum);
            }
        }
        Ok(())
    }

    /// The loss of the hidden states that predict responses, and the statistics of its rows.
    fn response_loss(&mut self, hidden: &Tensor, rows: &Rows) -> Result<(LossOutput, Statistics)> {
        let head = match &self.frozen_head {
            Some(head) => Head::from(head),
            None => Head::from(self.model.head()),
        };
        let output = if self.settings.dense {
            self.loss
                .forward(&logits(hidden, self.model.head())?, rows)?
        } else {
            self.loss.forward_linear(hidden, head, rows)?
        };
        let mut statistics = output.read_statistics()?;
        if statistics.rows() == 0 {
            statistics = self.observer.statistics_linear(hidden, head, rows)?;
        }
        Ok((output, statistics))
    }

    fn summary(&self, metrics: &[StepMetrics], seconds: f64) -> Trained {
        let tenth = metrics.len().div_ceil(10);
        let mean = |steps: &[StepMetrics]| {
            steps.iter().map(|step| step.loss).sum::<f64>() / steps.len().max(1) as f64
        };
        let rows: usize = metrics.iter().map(|step| step.rows).sum();
        Trained {
            steps: metrics.len(),
            first_loss: mean(&metrics[..tenth]),
            last_loss: mean(&metrics[metrics.len() - tenth..]),
            temperature: self.loss.temperature().value(),
            seconds,
            rows_per_second: rows as f64 / seconds,
        }
    }
}

/// The logits `[rows, labels, vocabulary]` of hidden states.
fn logits(hidden: &Tensor, head: &Tensor) -> Result<Tensor> {
    let (rows, labels, width) = hidden.dims3()?;
    let logits = hidden.reshape((rows * labels, width))?.matmul(&head.t()?)?;
    Ok(logits.reshape((rows, labels, head.dim(0)?))?)
}

/// Shortens the gradient of all weights together to a norm, and gives the norm that it had.
fn clip(gradients: &mut GradStore, weights: &[Var], longest: f64) -> Result<f64> {
    let mut sum = 0.0;
    for weight in weights {
        let Some(gradient) = gradients.get(weight) else {
            bail!("a weight of shape {:?} has no gradient", weight.dims());
        };
        sum += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let norm = sum.sqrt();
    if norm > longest {
        for weight in weights {
            if let Some(gradient) = gradients.remove(weight) {
                gradients.insert(weight, (gradient * (longest / norm))?);
            }
        }
    }
    Ok(norm)
}
