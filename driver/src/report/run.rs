//! What the folder of a run has to show.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use crate::{
    data::{catalogue_shape::CatalogueShape, json::read_json},
    evaluate::{
        comparison::{Comparison, EVALUATION_FILE, Line},
        decoding::Decoding,
        ranking::Pruned,
        ranks::{RANKS_FILE, RankedUser, read_ranks},
    },
    run::folder::RunFolder,
    train::metrics::{StepMetrics, read_metrics},
};

/// A run with whatever is there of it.
pub struct ReportedRun {
    /// Its folder.
    pub path: PathBuf,
    /// What the page calls it.
    pub name: String,
    /// What it was told, by names like `loss.temperature`.
    pub settings: Vec<(String, String)>,
    /// The folder of its catalogue and users.
    pub data: PathBuf,
    /// The hash of its titles, where it says what it was made with.
    pub titles: Option<String>,
    /// Its steps; none where it has not begun.
    pub steps: Vec<StepMetrics>,
    /// What `msl evaluate` found, if it was called.
    pub evaluation: Option<Comparison>,
    /// What came of every user of that.
    pub ranks: Option<Vec<RankedUser>>,
    /// Its catalogue.
    pub shape: CatalogueShape,
}

impl ReportedRun {
    /// Reads several runs. A folder that is none is an error.
    pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let names = names(paths);
        let runs = paths.iter().zip(names);
        runs.map(|(path, name)| Self::read(path, name)).collect()
    }

    fn read(path: &Path, name: String) -> Result<Self> {
        let folder = RunFolder::open(path)?;
        let mut settings = Vec::new();
        flatten("", &serde_json::to_value(folder.settings())?, &mut settings);
        if let Some(made_with) = folder.made_with() {
            flatten(
                "made_with",
                &serde_json::to_value(made_with)?,
                &mut settings,
            );
        }
        Ok(Self {
            path: path.to_owned(),
            name,
            settings,
            data: folder.settings().data.data.clone(),
            titles: folder.made_with().map(|made| made.titles.clone()),
            steps: read_metrics(path, usize::MAX)?,
            evaluation: if_there(&path.join(EVALUATION_FILE), read_json)?,
            ranks: if_there(&path.join(RANKS_FILE), read_ranks)?,
            shape: CatalogueShape::of_titles(&folder.trie()?),
        })
    }

    /// Whether it was trained on the catalogue of another, wherever that is.
    pub fn shares_catalogue(&self, other: &Self) -> bool {
        match (&self.titles, &other.titles) {
            (Some(own), Some(others)) => own == others,
            _ => self.data == other.data,
        }
    }

    /// How it was decoded for its evaluation, if that says so.
    pub fn decoding(&self) -> Option<&Decoding> {
        self.evaluation.as_ref()?.decoding.as_ref()
    }

    /// The line of the evaluation that is this run's own: of two, that of the exact search.
    pub fn evaluated(&self) -> Option<&Line> {
        self.evaluation.as_ref()?.rows.last()
    }

    /// What its beam search pruned; nothing where no exact search was made.
    pub fn pruned(&self) -> &[Pruned] {
        let mut lines = self
            .evaluation
            .iter()
            .flat_map(|evaluation| &evaluation.rows);
        let found = lines.find(|line| !line.pruned.is_empty());
        found.map_or(&[], |line| &line.pruned)
    }

    /// A line of the evaluation that others are to be measured by.
    pub fn baseline(&self, name: &str) -> Option<&Line> {
        let mut lines = self.evaluation.as_ref()?.rows.iter();
        lines.find(|line| line.name == name)
    }

    /// A setting as it is shown.
    pub fn setting(&self, name: &str) -> &str {
        let mut settings = self.settings.iter();
        let found = settings.find(|(found, _)| found == name);
        found.map_or("–", |(_, value)| value)
    }
}

fn if_there<T>(path: &Path, read: impl FnOnce(&Path) -> Result<T>) -> Result<Option<T>> {
    path.exists().then(|| read(path)).transpose()
}

/// The last part of each path, or the whole where two end alike.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let last = |path: &PathBuf| path.file_name().map(|name| name.to_owned());
    let name = |path: &PathBuf| {
        let alike = paths.iter().filter(|other| last(other) == last(path));
        match (last(path), alike.count()) {
            (Some(name), 1) => name.to_string_lossy().into_owned(),
            _ => path.display().to_string(),
        }
    };
    paths.iter().map(name).collect()
}

/// The values of nested objects, by names joined with dots.
fn flatten(name: &str, value: &Value, into: &mut Vec<(String, String)>) {
    let shown = |value: &Value| match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match value {
        Value::Object(values) => {
            for (key, value) in values {
                let separator = if name.is_empty() { "" } else { "." };
                flatten(&format!("{name}{separator}{key}"), value, into);
            }
        }
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(shown).collect();
            into.push((name.to_owned(), values.join(", ")));
        }
        value => into.push((name.to_owned(), shown(value))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_called_by_what_tells_them_apart() {
        let names = |paths: &[&str]| names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(names(&["runs/a", "runs/b/"]), ["a", "b"]);
        assert_eq!(names(&["x/a", "y/a", "y/b"]), ["x/a", "y/a", "b"]);
        assert_eq!(names(&["."]), ["."]);
    }

    #[test]
    fn settings_have_dotted_names() {
        let value = serde_json::json!({"loss": {"clamp": [1.5, 5.0], "end": null}, "data": "x"});
        let mut settings = Vec::new();
        flatten("", &value, &mut settings);
        settings.sort();
        let settings: Vec<(&str, &str)> = settings.iter().map(|(a, b)| (&a[..], &b[..])).collect();
        assert_eq!(
            settings,
            [("data", "x"), ("loss.clamp", "1.5, 5.0"), ("loss.end", "–")]
        );
    }
}
