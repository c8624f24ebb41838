//! Reads what the page shows of a run.

use std::path::{Path, PathBuf};

use anyhow::Result;
use maud::{Markup, html};
use plotters::style::RGBColor;
use serde_json::Value;

use super::charts::css;
use crate::{
    data::catalogue_shape::CatalogueShape,
    evaluate::{
        comparison::{Comparison, EVALUATION_FILE, Line},
        decoding::Decoding,
        ranking::Pruned,
        ranks::{RANKS_FILE, RankedUser, read_ranks},
    },
    io::json::read_json,
    run::folder::RunFolder,
    train::metrics::{StepMetrics, read_metrics},
};

/// A run as the page shows it.
pub struct ReportedRun {
    /// Its folder.
    pub path: PathBuf,
    /// Its name on the page.
    pub name: String,
    /// Its settings, by names such as `loss.temperature`.
    pub settings: Vec<(String, String)>,
    /// The folder of its catalogue and users.
    pub data: PathBuf,
    /// The paths of everything that it reads.
    pub inputs: Vec<PathBuf>,
    /// The hash of its titles; runs of earlier versions do not have it.
    pub titles: Option<String>,
    /// The metrics of its steps; empty where it has not begun.
    pub steps: Vec<StepMetrics>,
    /// The result of `msl evaluate`, if it was called.
    pub evaluation: Option<Comparison>,
    /// The rank of each user in that evaluation.
    pub ranks: Option<Vec<RankedUser>>,
    /// The shape of its catalogue.
    pub shape: CatalogueShape,
}

impl ReportedRun {
    /// Reads several runs. A folder that is no run is an error.
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
            inputs: (folder.settings().inputs().into_iter())
                .map(Path::to_owned)
                .collect(),
            titles: folder.made_with().map(|made| made.titles.clone()),
            steps: read_metrics(path, usize::MAX)?,
            evaluation: if_there(&path.join(EVALUATION_FILE), read_json)?,
            ranks: if_there(&path.join(RANKS_FILE), read_ranks)?,
            shape: CatalogueShape::of_titles(&folder.trie()?),
        })
    }

    /// Tells whether two runs were trained on the same catalogue, wherever its files are.
    pub fn shares_catalogue(&self, other: &Self) -> bool {
        match (&self.titles, &other.titles) {
            (Some(own), Some(others)) => own == others,
            _ => self.data == other.data,
        }
    }

    /// Returns how it was decoded for its evaluation, if the evaluation says so.
    pub fn decoding(&self) -> Option<&Decoding> {
        self.evaluation.as_ref()?.decoding.as_ref()
    }

    /// Returns the run's own line of the evaluation; that of the exact search, where there are two.
    pub fn evaluated(&self) -> Option<&Line> {
        self.evaluation.as_ref()?.rows.last()
    }

    /// Returns what its beam search pruned; empty without an exact search.
    pub fn pruned(&self) -> &[Pruned] {
        let mut lines = self
            .evaluation
            .iter()
            .flat_map(|evaluation| &evaluation.rows);
        let found = lines.find(|line| !line.pruned.is_empty());
        found.map_or(&[], |line| &line.pruned)
    }

    /// Returns the line of a baseline.
    pub fn baseline(&self, name: &str) -> Option<&Line> {
        let mut lines = self.evaluation.as_ref()?.rows.iter();
        lines.find(|line| line.name == name)
    }

    /// Returns the text of a setting.
    pub fn setting(&self, name: &str) -> &str {
        let mut settings = self.settings.iter();
        let found = settings.find(|(found, _)| found == name);
        found.map_or("–", |(_, value)| value)
    }
}

/// A run with the colour of its curves.
pub struct Shown<'a> {
    /// The run.
    pub run: &'a ReportedRun,
    /// Its colour in all charts.
    pub colour: RGBColor,
}

/// Builds a run's name beside its colour.
pub fn swatch(shown: &Shown) -> Markup {
    html! {
        span.run { span.swatch style={ "background:" (css(shown.colour)) } {} (shown.run.name) }
    }
}

fn if_there<T>(path: &Path, read: impl FnOnce(&Path) -> Result<T>) -> Result<Option<T>> {
    path.exists().then(|| read(path)).transpose()
}

/// Returns the last part of each path, or the whole path where two have the same last part.
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

/// Collects the values of nested objects, under names that are joined with dots.
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
