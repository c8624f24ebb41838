//! The file of what came of every user.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{catalogue::Interaction, output::OutputFile, ranking::UserResult};

/// The file's name in the folder of a run.
pub const RANKS_FILE: &str = "ranks.csv";

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankedUser {
    /// The user.
    pub user_id: String,
    /// The item that came next.
    pub item_id: u64,
    /// Its rank, 1 the first; `None` if it was not in the list.
    pub rank: Option<usize>,
    /// Its −ln p, in nats.
    pub item_nll: f64,
}

impl RankedUser {
    /// The same, as measures are made of it.
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
    rows: &[Interaction],
    users: &[UserResult],
) -> Result<()> {
    let path = output.path().to_owned();
    let cannot = || format!("cannot write {}", path.display());
    let mut file = csv::Writer::from_writer(&mut output);
    for (row, user) in rows.iter().zip(users) {
        file.serialize(RankedUser {
            user_id: row.user.clone(),
            item_id: row.target,
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
