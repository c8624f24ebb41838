//! Trains a model step by step.

pub mod events;
pub mod gradients;
pub mod interrupt;
pub mod loss_settings;
pub mod metrics;
mod micro_batch;
pub mod optimizer;
pub mod schedule;
pub mod settings;
pub mod training_run;
pub mod workers;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Tensor, Var};
use candle_trie::{
    Convention, LossOutput, MaskedSoftmaxLoss, Reduction, Rows, Statistics, Temperature,
    TemperatureState, TokenTrie,
};
use rand::RngCore;

use crate::{
    data::{batch::Reading, examples::Example},
    exchange::{self, Exchange, share},
    model::{Llama, LmHead},
    random::{Purpose, random_at},
    train::{
        gradients::Gradients,
        loss_settings::LossSettings,
        metrics::StepMetrics,
        micro_batch::{MicroBatch, Shard, Sums, shard_size},
        optimizer::AdamW,
        settings::TrainingSettings,
        workers::Workers,
    },
};

/// A training: the model, the loss and the optimizer, with their state.
pub struct Trainer<'a> {
    model: &'a Llama,
    trie: &'a TokenTrie,
    settings: &'a TrainingSettings,
    loss: MaskedSoftmaxLoss,
    convention: Convention,
    /// A loss over the trie for the statistics that are reported where the loss itself has none.
    observer: MaskedSoftmaxLoss,
    /// The head with its gathered rows, where it is not trained and the trie masks the loss.
    frozen_head: Option<LmHead>,
    optimizer: AdamW,
    workers: Workers,
    reading: Reading,
    /// The processes that take the same steps, each with its share of every batch.
    exchange: &'a dyn Exchange,
}

impl<'a> Trainer<'a> {
    /// Fails where the loss is not defined for this trie, before anything is trained.
    pub fn new(
        model: &'a Llama,
        trie: &'a TokenTrie,
        loss: &LossSettings,
        settings: &'a TrainingSettings,
        exchange: &'a dyn Exchange,
    ) -> Result<Self> {
        settings.check()?;
        let head = model.head()?;
        let reading = match loss.loss.is_masked() && !settings.read_unary_tail {
            true => Reading::Chosen,
            false => Reading::Whole,
        };
        let observer = loss.observer(trie)?;
        let kind = loss.loss;
        let loss = loss.build(trie, model.config().vocab_size)?;
        Ok(Self {
            model,
            trie,
            settings,
            convention: loss.convention(),
            loss,
            observer,
            frozen_head: match head.is_trained() || !kind.is_masked() {
                true => None,
                false => Some(head.frozen(trie)?),
            },
            optimizer: AdamW::new(model.parameters(), settings.weight_decay)?,
            workers: Workers::new(model.device())?,
            reading,
            exchange,
        })
    }

    /// Returns the number of steps taken so far.
    pub fn steps(&self) -> usize {
        self.optimizer.steps()
    }

    /// Returns the present temperature.
    ///
    /// # Errors
    /// Fails where candle cannot read it from the device.
    pub fn temperature(&self) -> Result<TemperatureState> {
        Ok(self.loss.temperature()?.state())
    }

    /// Tells whether all trained weights and their squares are finite: norms and attention add up the squares.
    ///
    /// # Errors
    /// Fails where candle cannot read it from the device.
    pub fn weights_are_finite(&self) -> Result<bool> {
        for (_, weight) in self.model.parameters() {
            let squares = weight.to_dtype(DType::F32)?.sqr()?.sum_all()?;
            if !squares.to_scalar::<f32>()?.is_finite() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the optimizer.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Continues a training after a checkpoint. The model must have the weights of that checkpoint. Random numbers of a
    /// step depend on the seed and the step alone.
    pub fn restore(
        &mut self,
        steps: usize,
        moments: std::collections::HashMap<String, Tensor>,
        temperature: TemperatureState,
    ) -> Result<()> {
        self.optimizer.restore(steps, moments)?;
        Ok(self.loss.temperature_mut()?.restore(temperature)?)
    }

    /// Takes one step with a batch of examples, at a learning rate. Where several processes train together, each is given
    /// the same batch and computes its share of it; loss, statistics and gradient are those of the whole batch.
    pub fn step(&mut self, examples: &[&Example], learning_rate: f64) -> Result<StepMetrics> {
        let begun = Instant::now();
        let pieces = self.micro_batches(examples)?;
        let rows = self.average_over(&pieces)?;
        let mut gradients = Gradients::of(self.model.parameters(), self.gradient_scale(rows));
        let mut sums = Sums::default();
        let alone = examples.len() <= self.settings.micro_batch_size();
        if alone && pieces.is_empty() {
            self.step_temperature(&Statistics::default())?;
        }
        for piece in &pieces {
            self.accumulate(piece, alone, &mut gradients, &mut sums)?;
        }
        let computed = Instant::now();
        let ranks = exchange::gather(self.exchange, &sums)?;
        let sums = ranks.into_iter().reduce(Sums::merge).unwrap_or(sums);
        let mut gradients = gradients.of_all_ranks(self.exchange)?;
        let exchange_seconds = computed.elapsed().as_secs_f64();
        if !alone {
            let temperature = self.loss.temperature_mut()?;
            temperature.step(&sums.statistics, self.optimizer.steps() as u64)?;
        }
        // BEAR's mean divides by the weights of all pieces, which are known now.
        let mut loss = sums.loss;
        if sums.bear_weight > 0.0 {
            let too_large = sums.bear_weight / rows as f64;
            loss /= too_large;
            gradients.divide(too_large);
        }
        let (gradients, gradient_norm) = gradients.clipped(self.settings.clip)?;
        if !gradient_norm.is_finite() {
            bail!(
                "the gradient of step {} is {gradient_norm}: {}",
                self.optimizer.steps() + 1,
                self.advice()
            );
        }
        self.optimizer.step(&gradients, learning_rate)?;
        let statistics = sums.observed;
        let observed = |value: f64| (statistics.rows() > 0 && value.is_finite()).then_some(value);
        Ok(StepMetrics {
            step: self.optimizer.steps(),
            loss,
            temperature: sums.temperature,
            positive_mean: observed(statistics.target_mean()),
            mean: observed(statistics.mean()),
            variance: observed(statistics.variance()),
            gradient_norm,
            rows: sums.labelled_rows as usize,
            tokens: sums.tokens as usize,
            padding: sums.padding as usize,
            learning_rate,
            tokens_per_second: sums.tokens as f64 / begun.elapsed().as_secs_f64(),
            exchange_seconds: (self.exchange.size() > 1).then_some(exchange_seconds),
            validation_nll: None,
        })
    }

    /// Returns what to try where numbers are not finite.
    fn advice(&self) -> &'static str {
        match (self.model.dtype(), self.optimizer.steps()) {
            (DType::F16, 0) => {
                "nothing was learned yet, so that the model itself leaves the range of f16, which ends at 65504: try \
                 --dtype bf16 or --dtype f32"
            }
            (DType::F16, _) => {
                "try a lower --learning-rate, or --dtype bf16 or --dtype f32, whose range is wider than that of f16"
            }
            (_, 0) => {
                "nothing was learned yet, so that the model's weights themselves are damaged, or not those of its \
                 configuration"
            }
            _ => "try a lower --learning-rate",
        }
    }

    fn micro_batches(&self, examples: &[&Example]) -> Result<Vec<MicroBatch>> {
        let step = self.optimizer.steps() as u64;
        let mut random = random_at(self.settings.seed, Purpose::Dropout, step);
        // Also for the rows of other ranks, so that a row's seed is the same whichever rank has it.
        let seeded = examples.iter().map(|&example| (example, random.next_u64()));
        let seeded: Vec<(&Example, u64)> = seeded.collect();
        let own: Vec<(&Example, u64)> = share(self.exchange, &seeded).copied().collect();
        let device = self.model.device();
        own.chunks(self.settings.micro_batch_size())
            .map(|examples| {
                let shard_size = shard_size(self.settings.micro_batch_size(), device);
                MicroBatch::new(examples, shard_size, self.reading, self.trie, device)
            })
            .collect()
    }

    /// Makes the losses of the pieces add up to the mean over all of them, but for BEAR's weights, and gives the rows
    /// that it is over.
    fn average_over(&mut self, pieces: &[MicroBatch]) -> Result<usize> {
        let count = |rows: &Rows| match self.convention.reduction {
            Reduction::MeanOverBranching => rows.branching_count(self.loss.sets()),
            _ => rows.len(),
        };
        let own: usize = pieces.iter().map(|piece| count(&piece.rows)).sum();
        let rows: usize = exchange::gather(self.exchange, &own)?.iter().sum();
        (self.loss).set_reduction(Reduction::MeanOver(rows.max(1) as f64))?;
        Ok(rows)
    }

    /// Returns the factor of the loss before it is differentiated. In f16 the gradient of a mean over many rows
    /// underflows, and that of about their sum does not.
    fn gradient_scale(&self, rows: usize) -> f64 {
        match self.model.dtype() {
            DType::F16 => rows.next_power_of_two() as f64,
            _ => 1.0,
        }
    }

    /// Adds a piece's loss and gradient to those of the step. A piece that is the whole step moves the temperature
    /// before it uses it.
    fn accumulate(
        &mut self,
        piece: &MicroBatch,
        alone: bool,
        gradients: &mut Gradients,
        sums: &mut Sums,
    ) -> Result<()> {
        let hidden = self.hidden(&piece.shards)?;
        let joined = Tensor::cat(&hidden.iter().map(Tensor::detach).collect::<Vec<_>>(), 0)?;
        let joined = Var::from_tensor(&joined)?;
        let output = self.response_loss(&joined, &piece.rows, alone)?;
        let loss: f64 = output.loss.to_dtype(DType::F64)?.to_scalar()?;
        if !loss.is_finite() {
            bail!(
                "the loss of step {} is {loss}: {}",
                self.optimizer.steps() + 1,
                self.advice()
            );
        }
        let statistics = output.read_statistics()?;
        let observed = match statistics.rows() {
            0 => (self.observer).statistics((&joined, &self.head()?), &piece.rows)?,
            _ => statistics,
        };
        let mut piece_gradients = (&output.loss * gradients.scale())?.backward()?;
        let upstream = piece_gradients
            .remove(&joined)
            .context("the hidden states have no gradient")?;
        gradients.add(&piece_gradients)?;
        self.add_gradients(gradients, &hidden, &upstream)?;

        sums.loss += loss;
        sums.temperature = output.read_temperature()?;
        sums.statistics = sums.statistics.merge(&statistics);
        sums.observed = sums.observed.merge(&observed);
        sums.bear_weight += output.read_bear_weight()?.unwrap_or(0.0);
        sums.labelled_rows += output.labelled_rows as u64;
        for Shard { batch, .. } in &piece.shards {
            sums.tokens += batch.token_count as u64;
            sums.padding += (batch.tokens.elem_count() - batch.token_count) as u64;
        }
        Ok(())
    }

    /// Returns the hidden states that predict the responses, shard by shard.
    fn hidden(&self, shards: &[Shard]) -> Result<Vec<Tensor>> {
        self.workers.map(shards.len(), |index| {
            let Shard { batch, seeds } = &shards[index];
            batch.response_hidden(&self.model.hidden_in_training(&batch.tokens, seeds)?)
        })
    }

    /// Differentiates the shards, from the gradient of their hidden states. Sums are taken in the order of the shards,
    /// so that they do not depend on the threads.
    fn add_gradients(
        &self,
        gradients: &mut Gradients,
        hidden: &[Tensor],
        upstream: &Tensor,
    ) -> Result<()> {
        let first = |shard: usize| -> Result<usize> {
            let before = hidden[..shard].iter().map(|hidden| hidden.dim(0));
            Ok(before.sum::<candle_core::Result<_>>()?)
        };
        let shards = self.workers.map(hidden.len(), |shard| {
            let hidden = &hidden[shard];
            let upstream = upstream.narrow(0, first(shard)?, hidden.dim(0)?)?;
            Ok((hidden * upstream)?.sum_all()?.backward()?)
        })?;
        shards.iter().try_for_each(|shard| gradients.add(shard))
    }

    /// Returns the loss of the hidden states that predict responses.
    fn response_loss(&mut self, hidden: &Tensor, rows: &Rows, alone: bool) -> Result<LossOutput> {
        // The statistics of one process are not those of the batch: the temperature needs all before the loss is taken.
        let together = alone && self.exchange.size() > 1;
        if together {
            let statistics = self.statistics(hidden, rows)?;
            self.step_temperature(&statistics)?;
        }
        // Only where it is asked for: on a GPU to read it is to wait for the last step.
        let given = match alone && !together {
            true => None,
            false => Some(self.loss.temperature()?.value()),
        };
        if self.settings.dense {
            let logits = self.model.head()?.logits(hidden)?;
            return Ok(match given {
                None => self.loss.forward(&logits, rows)?,
                Some(temperature) => self.loss.forward_at(&logits, rows, temperature)?,
            });
        }
        let head = self.head()?;
        Ok(match given {
            None => self.loss.forward((hidden, &head), rows)?,
            Some(temperature) => self.loss.forward_at((hidden, &head), rows, temperature)?,
        })
    }

    /// Returns what an adaptive temperature looks at; the statistics of no row where the temperature is fixed.
    fn statistics(&self, hidden: &Tensor, rows: &Rows) -> Result<Statistics> {
        if matches!(self.loss.temperature()?, Temperature::Fixed(_)) {
            return Ok(Statistics::default());
        }
        if self.settings.dense {
            let logits = self.model.head()?.logits(hidden)?;
            return Ok(self.loss.statistics(&logits, rows)?);
        }
        Ok((self.loss).statistics((hidden, &self.head()?), rows)?)
    }

    /// Moves the temperature by the statistics of all ranks, of which these are this one's.
    fn step_temperature(&mut self, own: &Statistics) -> Result<()> {
        let ranks = exchange::gather(self.exchange, own)?.into_iter();
        let statistics = ranks
            .reduce(|merged, next| merged.merge(&next))
            .unwrap_or(*own);
        let step = self.optimizer.steps() as u64;
        self.loss.temperature_mut()?.step(&statistics, step)?;
        Ok(())
    }

    /// Returns the head as the losses take it.
    fn head(&self) -> Result<LmHead> {
        match &self.frozen_head {
            Some(frozen) => Ok(frozen.clone()),
            None => self.model.head(),
        }
    }
}
