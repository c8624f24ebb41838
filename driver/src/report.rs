//! What a command says at its end: one table, or the same as one JSON object.

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use serde::Serialize;

use crate::ranking::Ranking;

/// One way to recommend, and how well it did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// What recommended.
    pub name: String,
    /// Where it ranked the targets.
    #[serde(flatten)]
    pub ranking: Ranking,
    /// Mean −ln p of the target items, in nats.
    pub item_nll: f64,
    /// The temperature that it recommends at.
    pub temperature: Option<f64>,
    /// Seconds of training.
    pub seconds: Option<f64>,
    /// Labelled rows that it was trained on by second.
    pub rows_per_second: Option<f64>,
}

impl Line {
    /// The line of the baseline that reads no history.
    pub fn popularity((ranking, item_nll): (Ranking, f64)) -> Self {
        Self {
            name: "popularity".into(),
            ranking,
            item_nll,
            temperature: None,
            seconds: None,
            rows_per_second: None,
        }
    }
}

/// Several ways to recommend beside each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The command.
    pub command: &'static str,
    /// The seed.
    pub seed: u64,
    /// Users that were evaluated.
    pub users: usize,
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
        let mut table = table(&[
            "",
            "HR@1",
            "HR@5",
            "HR@10",
            "NDCG@5",
            "NDCG@10",
            "item NLL",
            "temperature",
            "seconds",
            "rows/s",
        ]);
        for line in &self.rows {
            let Ranking {
                hit_rate_1,
                hit_rate_5,
                hit_rate_10,
                ndcg_5,
                ndcg_10,
            } = line.ranking;
            let mut cells = vec![line.name.clone()];
            cells.extend(
                [hit_rate_1, hit_rate_5, hit_rate_10, ndcg_5, ndcg_10]
                    .map(|share| format!("{share:.4}")),
            );
            cells.push(format!("{:.3}", line.item_nll));
            cells.push(optional(line.temperature, 3));
            cells.push(optional(line.seconds, 1));
            cells.push(optional(line.rows_per_second, 0));
            table.add_row(cells);
        }
        println!("{table}");
        for note in &self.notes {
            println!("{note}");
        }
        Ok(())
    }
}

/// Prints a value as one JSON object.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// An empty table whose first column names the rows.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn optional(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.decimals$}"))
}
