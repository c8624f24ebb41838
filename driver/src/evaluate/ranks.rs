//! Reads and writes the file of each user's rank.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    data::catalogue::{Catalogue, Interaction},
    evaluate::ranking::UserResult,
    io::output::OutputFile,
};

/// The file's name in the folder of a run.
pub const RANKS_FILE: &str = "ranks.csv";

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankedUser {
    /// The user.
    #[serde(
        serialize_with = "serialize_cell",
        deserialize_with = "deserialize_cell"
    )]
    pub user_id: String,
    /// The item that came next.
    #[serde(
        serialize_with = "serialize_cell",
        deserialize_with = "deserialize_cell"
    )]
    pub item_id: String,
    /// Its rank, 1 the first; `None` if it was not in the list.
    pub rank: Option<usize>,
    /// Its −ln p, in nats.
    pub item_nll: f64,
}

impl RankedUser {
    /// Tells whether another line is of the same user and item.
    pub fn is_of(&self, other: &Self) -> bool {
        (&self.user_id, &self.item_id) == (&other.user_id, &other.item_id)
    }

    /// Returns the result that measures are computed from.
    pub fn result(&self) -> UserResult {
        UserResult {
            place: self.rank.and_then(|rank| rank.checked_sub(1)),
            item_nll: self.item_nll,
        }
    }
}

/// Writes a CSV file of one line for each user.
pub fn write_ranks(
    mut output: OutputFile,
    catalogue: &Catalogue,
    rows: &[Interaction],
    users: &[UserResult],
) -> Result<()> {
    let path = output.path().to_owned();
    let cannot = || format!("cannot write {}", path.display());
    let mut file = csv::Writer::from_writer(&mut output);
    for (row, user) in rows.iter().zip(users) {
        file.serialize(RankedUser {
            user_id: row.user.clone(),
            item_id: (catalogue.item(row.target))
                .map(|item| item.id.clone())
                .unwrap_or_default(),
            rank: user.place.map(|place| place + 1),
            item_nll: user.item_nll,
        })
        .with_context(cannot)?;
    }
    file.flush().with_context(cannot)?;
    drop(file);
    output.finish()
}

/// Reads such a file.
pub fn read_ranks(path: &Path) -> Result<Vec<RankedUser>> {
    let cannot = || format!("cannot read {}", path.display());
    let mut file = csv::Reader::from_path(path).with_context(cannot)?;
    file.deserialize()
        .collect::<Result<_, _>>()
        .with_context(cannot)
}

/// Tells whether a spreadsheet would take a cell of this text for a formula. A number is none, whatever its sign.
fn is_formula(text: &str) -> bool {
    let is_number =
        text.parse::<f64>().is_ok() && text.contains(|digit: char| digit.is_ascii_digit());
    text.starts_with(['=', '+', '-', '@', '\t', '\r']) && !is_number
}

/// Returns a cell that spreadsheets show as this text. A text that looks like a formula, with or without quotes before
/// it, gets a single quote before it, which [`text`] removes.
fn cell(text: &str) -> String {
    match is_formula(text.trim_start_matches('\'')) {
        true => format!("'{text}"),
        false => text.to_owned(),
    }
}

/// Returns the text of such a cell.
fn text(cell: String) -> String {
    match cell.strip_prefix('\'') {
        Some(text) if is_formula(text.trim_start_matches('\'')) => text.to_owned(),
        _ => cell,
    }
}

fn serialize_cell<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&cell(text))
}

fn deserialize_cell<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_that_look_like_formulas_are_quoted_and_ids_come_back_as_they_went_in() {
        for (id, written) in [
            ("B00113X", "B00113X"),
            ("007", "007"),
            ("-7", "-7"),
            ("+1e5", "+1e5"),
            ("=1+1", "'=1+1"),
            ("+a", "'+a"),
            ("-a", "'-a"),
            ("@a", "'@a"),
            ("\t=a", "'\t=a"),
            ("'=a", "''=a"),
            ("'a", "'a"),
            ("'-7", "'-7"),
            ("", ""),
        ] {
            assert_eq!(cell(id), written);
            assert_eq!(text(written.into()), id);
        }
    }
}
