//! Writes TensorBoard's event files, with the same numbers as `metrics.jsonl`.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use syntaxdot_summary::SummaryWriter;

use crate::{io::output::begin_beside, train::metrics::StepMetrics};

/// The file's name in the folder of a run. TensorBoard reads files with `tfevents` in their names.
pub const EVENTS_FILE: &str = "events.out.tfevents.msl";

/// The event file of a run.
pub struct EventsFile {
    path: PathBuf,
    writer: SummaryWriter<File>,
}

impl EventsFile {
    /// Begins the file of a folder with the steps that were taken before.
    pub fn create(folder: &Path, earlier: &[StepMetrics]) -> Result<Self> {
        let path = folder.join(EVENTS_FILE);
        let cannot = || format!("cannot write {}", path.display());
        // Begun beside its place: what was there is replaced by a file that has the earlier steps.
        let (file, partial) = begin_beside(&path).with_context(cannot)?.into_parts();
        let writer = SummaryWriter::new(file).with_context(cannot)?;
        let mut events = Self {
            path: path.clone(),
            writer,
        };
        earlier.iter().try_for_each(|step| events.write(step))?;
        partial.persist(&path).with_context(cannot)?;
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
