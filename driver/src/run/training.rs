//! Trains a run: steps, evaluations on the validation rows, checkpoints.

use std::{ops::ControlFlow, path::Path, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    data::{examples::Example, tokenizer::TextTokenizer},
    evaluate::{Evaluator, search::SearchSettings},
    exchange::{self, Exchange},
    model::Llama,
    run::{
        checkpoint::{self, Best, TrainingState},
        folder::RunFolder,
        lock::Lock,
        rows::TokenizedRows,
        settings::RunSettings,
    },
    train::{
        Trainer,
        events::EventsFile,
        interrupt::{Interrupt, Interrupted},
        metrics::{MetricsFile, StepMetrics},
        schedule::Schedule,
        training_run::{self, Trained},
    },
};

/// Number of users whose item NLL is computed together.
const VALIDATION_BATCH: usize = 16;

/// Number of training rows that show whether a model has diverged. All rows go through all weights, so few are enough.
const CHECKED_ROWS: usize = 4;

/// The folder of a run, for the process that writes in it.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    /// The folder.
    pub run: &'a RunFolder,
    /// The lock of that folder.
    pub lock: &'a Lock,
}

/// A training of a run: it evaluates and saves its model on the way.
pub struct Training<'a> {
    /// The processes that train together, each of which has this.
    pub exchange: &'a dyn Exchange,
    /// Where the first of them writes; the others write nothing.
    pub record: Option<Record<'a>>,
    /// The path of the run's folder.
    pub path: &'a Path,
    /// The settings of the run.
    pub settings: &'a RunSettings,
    /// The model that is trained.
    pub model: &'a Llama,
    /// The tokenizer of the model.
    pub tokenizer: &'a TextTokenizer,
    /// The rows of the run.
    pub rows: &'a TokenizedRows,
    /// The steps that were taken so far.
    pub metrics: Vec<StepMetrics>,
    /// The state of the training after the last of these steps.
    pub state: TrainingState,
}

impl Training<'_> {
    /// Trains a run from its present step to its end, and returns a summary. A signal ends it earlier, with an
    /// [`Interrupted`] error.
    pub fn train_to_end(mut self, mut trainer: Trainer) -> Result<(Trained, Option<Best>)> {
        let settings = self.settings;
        let interrupt = Interrupt::listen()?;
        let mut files = match self.record {
            Some(_) => Some((
                MetricsFile::create(self.path, &self.metrics)?,
                EventsFile::create(self.path, &self.metrics)?,
            )),
            None => None,
        };
        let earlier = self.state.seconds;
        let schedule = Schedule::new(&settings.training, &self.rows.training);
        let steps = schedule.steps();
        let save_every = settings.checkpoints.save_every;
        let save_every = save_every.unwrap_or(schedule.steps_of_an_epoch()).max(1);
        let mut interrupted = None;
        if !self.has_ended(save_every) {
            let examples = &self.rows.training;
            let after = |trainer: &Trainer, mut step: StepMetrics, elapsed: Duration| {
                let due = step.step.is_multiple_of(save_every) || step.step == steps;
                self.state.step = step.step;
                self.state.temperature = trainer.temperature()?;
                self.state.seconds = earlier + elapsed.as_secs_f64();
                if due {
                    step.validation_nll = self.validate()?;
                }
                self.metrics.push(step.clone());
                if let (Some((metrics, events)), Some(record)) = (&mut files, self.record) {
                    events.write(&step)?;
                    record.run.check_there(record.lock)?;
                    metrics.write_last(&self.metrics)?;
                }
                // A signal may reach one rank only, or each at another step; all end after the same one.
                let heard = exchange::gather(self.exchange, &interrupt.heard().unwrap_or(0))?;
                interrupted = heard.into_iter().find(|&signal| signal != 0);
                if due || interrupted.is_some() {
                    self.save(trainer, due)?;
                }
                Ok(match interrupted.is_some() || self.has_ended(save_every) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
            };
            training_run::train(
                "training",
                &mut trainer,
                &settings.training,
                examples,
                after,
            )?;
        }
        if let Some(signal) = interrupted
            && self.state.step < steps
            && !self.has_ended(save_every)
        {
            let message = format!(
                "interrupted after step {} of {steps}, which is saved: continue with msl resume {}",
                self.state.step,
                self.path.display()
            );
            return Err(Interrupted { signal, message }.into());
        }
        let temperature = self.state.temperature.value;
        let trained = Trained::of(&self.metrics, temperature, self.state.seconds);
        Ok((trained, self.state.best))
    }

    /// Computes the item NLL of the validation rows, if there are any. The lowest makes the best checkpoint.
    fn validate(&mut self) -> Result<Option<f64>> {
        if self.rows.validation.is_empty() {
            return Ok(None);
        }
        let item_nll = self.item_nll(&self.rows.validation)?;
        ensure!(
            item_nll.is_finite(),
            "the item NLL of the validation rows after step {} is {item_nll}: try a lower --learning-rate",
            self.state.step
        );
        if self.state.best.is_none_or(|best| item_nll < best.item_nll) {
            self.state.best = Some(Best {
                step: self.state.step,
                item_nll,
            });
        }
        Ok(Some(item_nll))
    }

    fn item_nll(&self, examples: &[Example]) -> Result<f64> {
        let evaluator = Evaluator {
            trie: self.rows.responses.trie(),
            search: SearchSettings::default(),
            batch_size: VALIDATION_BATCH,
            temperature: self.state.temperature.value,
            exchange: self.exchange,
        };
        evaluator.mean_item_nll(self.model, examples)
    }

    /// Tells whether early stopping ends the training.
    fn has_ended(&self, save_every: usize) -> bool {
        match (self.settings.checkpoints.patience, self.state.best) {
            (Some(patience), Some(best)) => {
                (self.state.step - best.step) / save_every >= patience.max(1)
            }
            _ => false,
        }
    }

    /// Saves a checkpoint, unless its model has diverged: then the last one stays. A gradient may be finite and the
    /// step along it too long. That shows in the weights, or in the scores of the validation rows if they were
    /// `validated`, and else of the first training rows.
    fn save(&self, trainer: &Trainer, validated: bool) -> Result<()> {
        let rows = match validated && !self.rows.validation.is_empty() {
            true => 0,
            false => self.rows.training.len().min(CHECKED_ROWS),
        };
        let item_nll = self.item_nll(&self.rows.training[..rows])?;
        ensure!(
            item_nll.is_finite() && trainer.weights_are_finite()?,
            "the model has diverged by step {}: its weights or its scores are no longer finite. Try a lower \
             --learning-rate. The checkpoint before it is in {}",
            self.state.step,
            self.path.display()
        );
        let Some(record) = self.record else {
            return Ok(());
        };
        let best = self.state.best.map(|best| best.step);
        record
            .run
            .save(record.lock, self.state.step, best, |folder| {
                let optimizer = trainer.optimizer();
                let base = self.settings.pretrained.as_deref();
                checkpoint::save(
                    folder,
                    self.model,
                    base,
                    self.tokenizer,
                    optimizer,
                    &self.state,
                )
            })
    }
}
