//! TensorBoard's event files: the same numbers as in `metrics.jsonl`, to be watched in a browser.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use syntaxdot_summary::SummaryWriter;

use crate::metrics::StepMetrics;

/// Any file with `tfevents` in its name is looked at.
const NAME: &str = "events.out.tfevents.msl";

/// The event file of a run.
pub struct EventsFile {
    path: PathBuf,
    writer: SummaryWriter<File>,
}

impl EventsFile {
    /// Begins the file of a folder with the steps that were taken before.
    pub fn create(folder: &Path, earlier: &[StepMetrics]) -> Result<Self> {
        let path = folder.join(NAME);
        let cannot = || format!("cannot write {}", path.display());
        let partial = folder.join(format!(".{NAME}"));
        let writer = File::create(&partial)
            .and_then(SummaryWriter::new)
            .with_context(cannot)?;
        let mut events = Self {
            path: path.clone(),
            writer,
        };
        earlier.iter().try_for_each(|step| events.write(step))?;
        fs::rename(&partial, &path).with_context(cannot)?;
        Ok(events)
    }

    /// Adds a step.
    pub fn write(&mut self, step: &StepMetrics) -> Result<()> {
        let scalars = [
            ("loss", Some(step.loss)),
            ("temperature", Some(step.temperature)),
            ("statistics/positive_mean", step.positive_mean),
            ("statistics/mean", step.mean),
            ("statistics/variance", step.variance),
            ("gradient_norm", Some(step.gradient_norm)),
            ("learning_rate", Some(step.learning_rate)),
            ("tokens_per_second", Some(step.tokens_per_second)),
            ("validation/item_nll", step.validation_nll),
        ];
        for (name, value) in scalars {
            if let Some(value) = value {
                self.writer
                    .write_scalar(name, step.step as i64, value as f32)
                    .with_context(|| format!("cannot write {}", self.path.display()))?;
            }
        }
        Ok(())
    }
}
