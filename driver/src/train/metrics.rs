//! Writes and reads `metrics.jsonl`, which has one JSON object for each step.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use same_file::Handle;
use serde::{Deserialize, Deserializer, Serialize};

use crate::io::{output::begin_beside, parent};

/// The file's name in the folder of a run.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// The numbers of one optimizer step. Statistics of no row are `null`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, counted from 1.
    pub step: usize,
    /// Loss of the batch, in the convention of its kind.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Temperature of the loss.
    #[serde(deserialize_with = "number_or_null")]
    pub temperature: f64,
    /// μ⁺: the mean logit of the targets, over the rows of the statistics.
    pub positive_mean: Option<f64>,
    /// μ: the mean of their valid logits.
    pub mean: Option<f64>,
    /// σ²: the unbiased variance of their valid logits.
    pub variance: Option<f64>,
    /// The norm of the gradient of all weights, before it is clipped.
    #[serde(deserialize_with = "number_or_null")]
    pub gradient_norm: f64,
    /// Number of labelled rows in the batch.
    pub rows: usize,
    /// Number of tokens that the model read, without padding.
    pub tokens: usize,
    /// Number of padding tokens that the model read.
    pub padding: usize,
    /// The learning rate.
    #[serde(deserialize_with = "number_or_null")]
    pub learning_rate: f64,
    /// Tokens per second.
    #[serde(deserialize_with = "number_or_null")]
    pub tokens_per_second: f64,
    /// Seconds in which the first of several ranks waited for the others to compute their gradients, and summed them. On a
    /// GPU a part of this is done later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange_seconds: Option<f64>,
    /// Mean item NLL of the validation rows, where they were evaluated after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_nll: Option<f64>,
}

/// The file while it is written. Every step is written at once, so that a run can be watched.
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Begins the file of a folder with the steps that were taken before.
    pub fn create(folder: &Path, earlier: &[StepMetrics]) -> Result<Self> {
        let path = folder.join(METRICS_FILE);
        let cannot = || format!("cannot write {}", path.display());
        let (file, partial) = begin_beside(&path).with_context(cannot)?.into_parts();
        let mut metrics = Self {
            path: path.clone(),
            file,
        };
        earlier.iter().try_for_each(|step| metrics.write(step))?;
        partial.persist(&path).with_context(cannot)?;
        Ok(metrics)
    }

    /// Adds the last of the steps, or all of them where the file was deleted or replaced.
    pub fn write_last(&mut self, steps: &[StepMetrics]) -> Result<()> {
        let own = Handle::from_file(self.file.try_clone()?)?;
        if Handle::from_path(&self.path).is_ok_and(|found| found == own) {
            return steps.last().map_or(Ok(()), |step| self.write(step));
        }
        eprintln!(
            "warning: {} was deleted or replaced while the run was trained, and is written anew",
            self.path.display()
        );
        *self = Self::create(parent(&self.path), steps)?;
        Ok(())
    }

    fn write(&mut self, step: &StepMetrics) -> Result<()> {
        let line = serde_json::to_string(step)? + "\n";
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Reads the steps of a run's folder up to number `last`. A warning names each damaged line, which is left out. A last
/// line that is cut off, as an interrupted run leaves it, is left out silently.
pub fn read_metrics(folder: &Path, last: usize) -> Result<Vec<StepMetrics>> {
    let path = folder.join(METRICS_FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let whole = bytes.split_inclusive(|&byte| byte == b'\n');
    let whole = (1..).zip(whole).filter(|(_, line)| line.ends_with(b"\n"));
    let mut steps = Vec::new();
    for (number, line) in whole {
        match serde_json::from_slice::<StepMetrics>(line) {
            Ok(step) if step.step <= last => steps.push(step),
            Ok(_) => {}
            Err(error) => eprintln!(
                "warning: {}, line {number}: expected the numbers of a step, and the line is left out: {error}",
                path.display()
            ),
        }
    }
    Ok(steps)
}

/// Reads a number that may be `null`, which is how JSON writes NaN and infinity.
fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
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
            exchange_seconds: (step == 3).then_some(0.25),
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

    #[test]
    fn a_file_that_was_deleted_or_replaced_is_written_anew_with_all_steps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS_FILE);
        let steps: Vec<StepMetrics> = (1..=4).map(step).collect();
        let mut metrics = MetricsFile::create(folder.path(), &[]).unwrap();
        metrics.write_last(&steps[..1]).unwrap();
        fs::remove_file(&path).unwrap();
        metrics.write_last(&steps[..2]).unwrap();
        assert_eq!(read_metrics(folder.path(), 9).unwrap(), steps[..2]);
        fs::rename(&path, folder.path().join("aside")).unwrap();
        fs::write(&path, "").unwrap();
        metrics.write_last(&steps[..3]).unwrap();
        metrics.write_last(&steps).unwrap();
        assert_eq!(read_metrics(folder.path(), 9).unwrap(), steps);
    }

    #[test]
    fn a_damaged_line_costs_no_other_and_a_number_that_json_lacks_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let steps: Vec<StepMetrics> = (1..=4).map(step).collect();
        let line = |step: &StepMetrics| serde_json::to_string(step).unwrap() + "\n";
        let mut lines: Vec<String> = steps.iter().map(line).collect();
        lines[1] = lines[1].replace("loss", "los");
        lines[2] = lines[2].replace("\"loss\":3.1", "\"loss\":null");
        let mut bytes = lines.concat().into_bytes();
        bytes.splice(0..0, *b"\xff\n");
        fs::write(folder.path().join(METRICS_FILE), bytes).unwrap();
        let read = read_metrics(folder.path(), 9).unwrap();
        assert_eq!((read.len(), &read[0], &read[2]), (3, &steps[0], &steps[3]));
        assert!(read[1].loss.is_nan() && read[1].step == 3);
    }
}
