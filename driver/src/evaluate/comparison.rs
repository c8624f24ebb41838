//! Compares ways to recommend, in a table or as JSON.

use anyhow::Result;
use comfy_table::Table;
use serde::{Deserialize, Serialize};

use crate::{
    console::{print, print_json, table},
    data::targets::{ByOccurrence, Targets},
    evaluate::{
        decoding::Decoding,
        ranking::{Estimate, Measures, Pruned, UserResult, common_cutoff, pruned_name},
    },
    train::training_run::Trained,
};

/// The file in the folder of a run that keeps its last evaluation: a [`Comparison`].
pub const EVALUATION_FILE: &str = "evaluation.json";

/// Says how to read the numbers of a comparison.
pub const ERRORS_NOTE: &str = "± is one standard error over the users. Item NLL is the mean −ln p of the item that came \
                           next, in nats; popularity's p is of its counts plus one, the item graph's of what followed \
                           the last item, backed off to popularity.";

/// One way to recommend, with its measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The name of the way to recommend.
    pub name: String,
    /// Its measures, with standard errors.
    #[serde(flatten)]
    pub measures: Measures,
    /// The measures by whether the targets occur in training rows; `None` where there is no target of a kind.
    #[serde(default)]
    pub targets: ByOccurrence<Option<Measures>>,
    /// The targets that its beam search pruned; empty without an exact search to tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pruned: Vec<Pruned>,
    /// Temperature of its softmax.
    pub temperature: Option<f64>,
    /// Seconds of training.
    pub seconds: Option<f64>,
    /// Labelled rows per second of training.
    pub rows_per_second: Option<f64>,
    /// Users per second of searching.
    pub users_per_second: Option<f64>,
    /// Mean number of tokens that the model read to search for one user.
    pub model_tokens: Option<f64>,
}

impl Line {
    /// Computes the measures of a way to recommend whose lists have at most `length` items. `targets` are those of the
    /// users.
    pub fn of_users(
        name: impl Into<String>,
        users: &[UserResult],
        length: usize,
        targets: &Targets,
    ) -> Self {
        let of_some =
            |users: Vec<UserResult>| (!users.is_empty()).then(|| Measures::of(&users, length));
        Self::new(
            name.into(),
            Measures::of(users, length),
            targets.tell_apart(users).map(of_some),
        )
    }

    /// Computes the measures of drawing from so many titles at random, which are the same for every target.
    pub fn uniform(titles: usize, targets: &Targets) -> Self {
        let measures = Measures::uniform(titles);
        let of_some = |users: usize| (users > 0).then(|| measures.clone());
        let by_target = targets.counts().map(of_some);
        Self::new("uniform".into(), measures, by_target)
    }

    fn new(name: String, measures: Measures, targets: ByOccurrence<Option<Measures>>) -> Self {
        Self {
            name,
            measures,
            targets,
            pruned: Vec::new(),
            temperature: None,
            seconds: None,
            rows_per_second: None,
            users_per_second: None,
            model_tokens: None,
        }
    }

    /// Adds the time and the speed of its training.
    pub fn trained(mut self, trained: &Trained) -> Self {
        self.seconds = Some(trained.seconds);
        self.rows_per_second = Some(trained.rows_per_second);
        self
    }
}

/// A comparison of ways to recommend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The command.
    pub command: String,
    /// The seed.
    pub seed: u64,
    /// Users that were evaluated.
    pub users: usize,
    /// The split of the data, or the file, that they come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluated_on: Option<String>,
    /// Numbers of their targets, by whether these occur in training rows.
    #[serde(default)]
    pub targets: ByOccurrence<usize>,
    /// The options of the decoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoding: Option<Decoding>,
    /// A line for each way to recommend.
    pub rows: Vec<Line>,
    /// Sentences that explain the numbers.
    pub notes: Vec<String>,
}

impl Comparison {
    /// Prints it, as JSON where that is asked for.
    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            return print_json(self);
        }
        print(self.table())?;
        if self.targets.named().iter().all(|(_, users)| **users > 0) {
            print(self.table_by_target())?;
        }
        for note in &self.notes {
            print(note)?;
        }
        Ok(())
    }

    /// Builds the table of all targets together.
    fn table(&self) -> Table {
        let mut table = self.empty_table();
        let measures = self.rows.iter().map(|line| line.measures.named());
        add_measures(&mut table, &measures.collect::<Vec<_>>(), |name| {
            name.clone()
        });
        for Pruned { top, .. } in self.rows.iter().flat_map(|line| &line.pruned) {
            let of_top = |line: &Line| {
                let found = line.pruned.iter().find(|pruned| pruned.top == *top);
                found.map_or_else(|| NONE.into(), Pruned::to_string)
            };
            let cells = self.rows.iter().map(of_top);
            table.add_row([pruned_name(*top)].into_iter().chain(cells));
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
        table
    }

    /// Builds the table of the main measures of each kind of target.
    fn table_by_target(&self) -> Table {
        let mut table = self.empty_table();
        let cutoff = common_cutoff(self.rows.iter().map(|line| &line.measures));
        for (index, (kind, _)) in self.targets.named().into_iter().enumerate() {
            let of_kind = |line: &Line| {
                let measures = line.targets.named()[index].1.as_ref();
                measures.map_or_else(Vec::new, |measures| measures.at(cutoff))
            };
            let measures: Vec<_> = self.rows.iter().map(of_kind).collect();
            add_measures(&mut table, &measures, |name| format!("{name}, {kind}"));
        }
        table
    }

    /// Builds a table with a column for each way to recommend.
    fn empty_table(&self) -> Table {
        let names = self.rows.iter().map(|line| line.name.as_str());
        table(&[""].into_iter().chain(names).collect::<Vec<_>>())
    }
}

/// Stands where a line has no value.
const NONE: &str = "–";

/// Adds a row for every measure that any line has, in the order of the line that has most.
fn add_measures(
    table: &mut Table,
    lines: &[Vec<(String, Estimate)>],
    name_of_row: impl Fn(&String) -> String,
) {
    let names = lines.iter().max_by_key(|line| line.len());
    for (name, _) in names.into_iter().flatten() {
        let cell = |line: &Vec<(String, Estimate)>| {
            let found = line.iter().find(|(found, _)| found == name);
            found.map_or_else(|| NONE.into(), |(_, estimate)| estimate_cell(*estimate))
        };
        table.add_row(
            [name_of_row(name)]
                .into_iter()
                .chain(lines.iter().map(cell)),
        );
    }
}

fn estimate_cell(Estimate { mean, error }: Estimate) -> String {
    match error {
        Some(error) => format!("{mean:.4} ±{error:.4}"),
        None => format!("{mean:.4}"),
    }
}

fn optional(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| NONE.into(), |value| format!("{value:.decimals$}"))
}
