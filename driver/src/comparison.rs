//! Several ways to recommend, and how well each did.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    console::{print, print_json, table},
    decoding::Decoding,
    ranking::{Estimate, Measures},
    training_run::Trained,
};

/// The file in the folder of a run that keeps its last evaluation: a [`Comparison`].
pub const EVALUATION_FILE: &str = "evaluation.json";

/// One way to recommend, and how well it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// What recommended.
    pub name: String,
    /// How well, with standard errors.
    #[serde(flatten)]
    pub measures: Measures,
    /// The temperature that it recommends at.
    pub temperature: Option<f64>,
    /// Seconds of training.
    pub seconds: Option<f64>,
    /// Labelled rows that it was trained on by second.
    pub rows_per_second: Option<f64>,
    /// Users that it recommended to by second.
    pub users_per_second: Option<f64>,
    /// Tokens that the model read for each of them.
    pub model_tokens: Option<f64>,
}

impl Line {
    /// A way to recommend that nothing more is known of.
    pub fn new(name: impl Into<String>, measures: Measures) -> Self {
        Self {
            name: name.into(),
            measures,
            temperature: None,
            seconds: None,
            rows_per_second: None,
            users_per_second: None,
            model_tokens: None,
        }
    }

    /// The same, with what its training was.
    pub fn trained(mut self, trained: &Trained) -> Self {
        self.seconds = Some(trained.seconds);
        self.rows_per_second = Some(trained.rows_per_second);
        self
    }
}

/// Several ways to recommend beside each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The command.
    pub command: String,
    /// The seed.
    pub seed: u64,
    /// Users that were evaluated.
    pub users: usize,
    /// Where they come from: a split of the data, or a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluated_on: Option<String>,
    /// How they were decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoding: Option<Decoding>,
    /// The results.
    pub rows: Vec<Line>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl Comparison {
    /// Prints it, as JSON where that is asked for.
    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            return print_json(self);
        }
        let names = self.rows.iter().map(|line| line.name.as_str());
        let header: Vec<&str> = [""].into_iter().chain(names).collect();
        let mut table = table(&header);
        for (name, cells) in self.measures() {
            table.add_row([name].into_iter().chain(cells));
        }
        type Value = fn(&Line) -> Option<f64>;
        let others: [(&str, Value, usize); 5] = [
            ("temperature", |line| line.temperature, 3),
            ("seconds of training", |line| line.seconds, 1),
            ("rows/s of training", |line| line.rows_per_second, 0),
            ("users/s", |line| line.users_per_second, 1),
            ("model tokens/user", |line| line.model_tokens, 1),
        ];
        for (name, value, decimals) in others {
            if self.rows.iter().any(|line| value(line).is_some()) {
                let cells = self.rows.iter().map(|line| optional(value(line), decimals));
                table.add_row([name.to_owned()].into_iter().chain(cells));
            }
        }
        print(&table)?;
        for note in &self.notes {
            print(note)?;
        }
        Ok(())
    }

    /// Every measure that any of them has, in the order of the one that has most.
    fn measures(&self) -> Vec<(String, Vec<String>)> {
        let lines: Vec<Vec<(String, Estimate)>> =
            (self.rows.iter().map(|line| line.measures.named())).collect();
        let names = lines.iter().max_by_key(|line| line.len());
        let names = names.into_iter().flatten().map(|(name, _)| name);
        let cell = |line: &Vec<(String, Estimate)>, name: &String| {
            let found = line.iter().find(|(found, _)| found == name);
            found.map_or_else(|| "–".into(), |(_, estimate)| estimate_cell(*estimate))
        };
        let row = |name: &String| lines.iter().map(|line| cell(line, name)).collect();
        names.map(|name| (name.clone(), row(name))).collect()
    }
}

fn estimate_cell(Estimate { mean, error }: Estimate) -> String {
    match error {
        Some(error) => format!("{mean:.4} ±{error:.4}"),
        None => format!("{mean:.4}"),
    }
}

fn optional(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.decimals$}"))
}
