//! `metrics.jsonl`: one JSON object a step.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What is kept of one optimizer step. A statistic of no row is `null`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, counted from 1.
    pub step: usize,
    /// The loss of the batch, in its own convention.
    pub loss: f64,
    /// The temperature that the loss was taken at.
    pub temperature: f64,
    /// μ⁺: the mean logit of the targets, over the rows of the statistics.
    pub positive_mean: Option<f64>,
    /// μ: the mean of their valid logits.
    pub mean: Option<f64>,
    /// σ²: the unbiased variance of their valid logits.
    pub variance: Option<f64>,
    /// The norm of the gradient of all weights, before it is clipped.
    pub gradient_norm: f64,
    /// Labelled rows in the batch.
    pub rows: usize,
    /// The learning rate.
    pub learning_rate: f64,
    /// Tokens that the model read, by the seconds of the step.
    pub tokens_per_second: f64,
}

/// The file being written. Every step reaches it at once, so that a run can be watched.
pub struct MetricsFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl MetricsFile {
    /// Begins a file.
    pub fn create(path: &Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
        })
    }

    /// Adds a line.
    pub fn write(&mut self, step: &StepMetrics) -> Result<()> {
        let line = serde_json::to_string(step)?;
        writeln!(self.file, "{line}")
            .and_then(|()| self.file.flush())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}
