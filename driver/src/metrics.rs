//! `metrics.jsonl`: one JSON object a step.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The file's name in the folder of a run.
pub const METRICS_FILE: &str = "metrics.jsonl";

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
    /// Tokens that the model read, padding left out.
    pub tokens: usize,
    /// Padding that it read with them.
    pub padding: usize,
    /// The learning rate.
    pub learning_rate: f64,
    /// Tokens that the model read, by the seconds of the step.
    pub tokens_per_second: f64,
    /// The mean item NLL of the validation rows, where it was taken after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_nll: Option<f64>,
}

/// The file being written. Every step reaches it at once, so that a run can be watched.
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Begins the file of a folder with the steps that were taken before.
    pub fn create(folder: &Path, earlier: &[StepMetrics]) -> Result<Self> {
        let path = folder.join(METRICS_FILE);
        let partial = folder.join(format!(".{METRICS_FILE}"));
        let cannot = || format!("cannot write {}", path.display());
        let file = File::create(&partial).with_context(cannot)?;
        let mut metrics = Self {
            path: path.clone(),
            file,
        };
        earlier.iter().try_for_each(|step| metrics.write(step))?;
        fs::rename(&partial, &path).with_context(cannot)?;
        Ok(metrics)
    }

    /// Adds a line.
    pub fn write(&mut self, step: &StepMetrics) -> Result<()> {
        let line = serde_json::to_string(step)? + "\n";
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The steps of a run's folder up to number `last`. A line that was cut off when a run was ends them.
pub fn read_metrics(folder: &Path, last: usize) -> Result<Vec<StepMetrics>> {
    let path = folder.join(METRICS_FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let steps = text
        .lines()
        .map_while(|line| serde_json::from_str(line).ok());
    Ok(steps
        .take_while(|step: &StepMetrics| step.step <= last)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize) -> StepMetrics {
        StepMetrics {
            step,
            loss: 0.1 + step as f64,
            temperature: 1.5,
            positive_mean: Some(1.0 / 3.0),
            mean: None,
            variance: None,
            gradient_norm: 1e-7,
            rows: 3,
            tokens: 7,
            padding: 1,
            learning_rate: 1e-4,
            tokens_per_second: 5.0,
            validation_nll: (step == 2).then_some(6.5),
        }
    }

    #[test]
    fn a_run_that_goes_on_keeps_the_steps_before_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = MetricsFile::create(folder.path(), &[]).unwrap();
        let steps: Vec<StepMetrics> = (1..=4).map(step).collect();
        steps.iter().for_each(|step| metrics.write(step).unwrap());
        metrics.file.write_all(b"{\"step\": 5, \"lo").unwrap();
        let kept = read_metrics(folder.path(), 3).unwrap();
        assert_eq!(kept, steps[..3]);
        MetricsFile::create(folder.path(), &kept).unwrap();
        assert_eq!(read_metrics(folder.path(), 9).unwrap(), steps[..3]);
        assert!(
            read_metrics(&folder.path().join("none"), 9)
                .unwrap()
                .is_empty()
        );
    }
}
