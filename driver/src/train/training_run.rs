//! Runs the steps of a training, from the first or the one after a checkpoint to the last.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use anyhow::Result;
use candle_trie::TokenTrie;
use serde::Serialize;

use crate::{
    console::progress::Progress,
    data::examples::Example,
    exchange::Exchange,
    model::Llama,
    train::{
        Trainer,
        loss_settings::{LossKind, LossSettings},
        metrics::StepMetrics,
        schedule::Schedule,
        settings::TrainingSettings,
    },
};

/// A summary of a training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trained {
    /// Number of optimizer steps.
    pub steps: usize,
    /// Mean loss of the first tenth of the steps.
    pub first_loss: f64,
    /// Mean loss of the last tenth of the steps.
    pub last_loss: f64,
    /// The temperature at the end.
    pub temperature: f64,
    /// Seconds of training.
    pub seconds: f64,
    /// Labelled rows per second.
    pub rows_per_second: f64,
}

impl Trained {
    /// Builds the summary of all steps of a training.
    pub fn of(metrics: &[StepMetrics], temperature: f64, seconds: f64) -> Self {
        let tenth = metrics.len().div_ceil(10);
        let mean = |steps: &[StepMetrics]| {
            steps.iter().map(|step| step.loss).sum::<f64>() / steps.len().max(1) as f64
        };
        let rows: usize = metrics.iter().map(|step| step.rows).sum();
        Self {
            // Lines of the metrics may have been damaged.
            steps: metrics.last().map_or(0, |step| step.step),
            first_loss: mean(&metrics[..tenth]),
            last_loss: mean(&metrics[metrics.len() - tenth..]),
            temperature,
            seconds,
            rows_per_second: rows as f64 / seconds,
        }
    }
}

/// Pretrains a model on the titles of a catalogue by the plain loss, so that it knows their language before it learns
/// which of them comes next.
pub fn pretrain(
    model: &Llama,
    trie: &TokenTrie,
    settings: &TrainingSettings,
    titles: &[Example],
    exchange: &dyn Exchange,
) -> Result<()> {
    let loss = LossSettings {
        loss: LossKind::Lml,
        ..LossSettings::default()
    };
    let mut trainer = Trainer::new(model, trie, &loss, settings, exchange)?;
    let label = "pretraining on the titles";
    let after = |_: &Trainer, _, _| Ok(ControlFlow::Continue(()));
    train(label, &mut trainer, settings, titles, after)
}

/// Runs the steps that a trainer has not taken yet. `after` is called after every step, and may end the training.
pub fn train(
    label: &str,
    trainer: &mut Trainer,
    settings: &TrainingSettings,
    examples: &[Example],
    mut after: impl FnMut(&Trainer, StepMetrics, Duration) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let schedule = Schedule::new(settings, examples);
    let (first, steps) = (trainer.steps(), schedule.steps());
    let mut progress = Progress::new(label, steps).starting_at(first);
    let begun = Instant::now();
    for batch in schedule.batches_from(first) {
        let batch: Vec<&Example> = batch.into_iter().map(|place| &examples[place]).collect();
        let learning_rate = settings.learning_rate_at(trainer.steps(), steps);
        let step = trainer.step(&batch, learning_rate)?;
        progress.detail(format!(
            "loss {:.3}, temperature {:.3}",
            step.loss, step.temperature
        ));
        progress.advance(1);
        if after(trainer, step, begun.elapsed())?.is_break() {
            break;
        }
    }
    progress.finish();
    Ok(())
}
