//! Reads who chose what and when, and splits it into rows to train on, for validation and for the test.
//!
//! Interactions that somebody has split come as RecBole's benchmark files (`benchmark_filename`): `NAME.part1.inter` to
//! train on, `NAME.part2.inter` for validation, `NAME.part3.inter` for the test; or `train`, `valid` and `test` in their
//! place. With a column `item_id_list`, each of their rows has its own history.

use std::{collections::HashMap, path::Path};

use anyhow::{Result, bail, ensure};

use crate::data::{
    catalogue::{Catalogue, Interaction},
    files::Interactions,
    json_format,
    rows::{has_histories, read_rows},
    summary::DataReport,
    text_table::{Layout, Table},
};

/// The columns of RecBole's interactions.
const COLUMNS: [&str; 3] = ["user_id", "item_id", "timestamp"];

/// Rows to train on, for validation and for the test; user by user in the order in which users first come up, or as the
/// files have them where each row has its own history.
pub type Parts = [Vec<Interaction>; 3];

/// Reads the interactions with the items of a catalogue. A row's history holds a user's last `history` items before it.
pub fn read_interactions(
    files: &Interactions,
    catalogue: &Catalogue,
    history: usize,
    report: &mut DataReport,
) -> Result<Parts> {
    let mut users = Users::default();
    match files {
        Interactions::Whole(file) => {
            users.read(file, 0, catalogue, report)?;
            users.leave_one_out();
        }
        Interactions::Users(file) => {
            json_format::read_users(file, catalogue, &mut users, report)?;
            users.leave_one_out();
        }
        Interactions::Rows(files) => {
            let mut parts = Parts::default();
            for (rows, file) in parts.iter_mut().zip(files) {
                if let Some(file) = file {
                    *rows = read_rows(file, Layout::CommaSeparated, history, catalogue, report)?;
                }
            }
            return Ok(parts);
        }
        Interactions::Parts(files) if has_histories(&files[0])? => {
            let mut parts = Parts::default();
            for (rows, file) in parts.iter_mut().zip(files) {
                *rows = read_rows(file, Layout::Atomic, history, catalogue, report)?;
            }
            return Ok(parts);
        }
        Interactions::Parts(files) => {
            for (part, file) in files.iter().enumerate() {
                users.read(file, part, catalogue, report)?;
            }
        }
    }
    Ok(users.rows(history))
}

/// The choices of users, in the order in which the users first come up.
#[derive(Default)]
pub struct Users {
    places: HashMap<String, usize>,
    chosen: Vec<(String, Vec<Choice>)>,
}

/// One item that a user chose.
pub struct Choice {
    /// When it was chosen: the larger, the later.
    pub moment: f64,
    /// The part that it belongs to: 0 for training, 1 for validation, 2 for the test.
    pub part: usize,
    /// The number of the item.
    pub item: u64,
}

impl Users {
    /// Adds a choice of a user.
    pub fn add(&mut self, user: &str, choice: Choice) {
        let next = self.chosen.len();
        let index = match self.places.get(user) {
            Some(&index) => index,
            None => {
                self.places.insert(user.to_owned(), next);
                self.chosen.push((user.to_owned(), Vec::new()));
                next
            }
        };
        self.chosen[index].1.push(choice);
    }

    /// Adds the rows of a file.
    fn read(
        &mut self,
        path: &Path,
        part: usize,
        catalogue: &Catalogue,
        report: &mut DataReport,
    ) -> Result<()> {
        let mut table = Table::open(path, Layout::Atomic)?;
        let [user, item, timestamp] = COLUMNS.map(|column| table.column(column));
        let (user, item, timestamp) = (user?, item?, timestamp?);
        let (mut count, mut known) = (0, 0);
        while let Some(line) = table.next_row()? {
            count += 1;
            let place = || format!("{}, line {line}", path.display());
            let text = table.field(timestamp);
            let moment = match text.parse::<f64>() {
                Ok(moment) if moment.is_finite() => moment,
                _ => bail!("{}: expected a timestamp, found {text:?}", place()),
            };
            let name = table.field(item);
            let Some(item) = catalogue.number(name) else {
                report.leave_out_row_of(&place(), name)?;
                continue;
            };
            self.add(table.field(user), Choice { moment, part, item });
            known += 1;
        }
        report.add_file(path, &COLUMNS, count);
        ensure!(known > 0, report.nothing_left(path, count));
        Ok(())
    }

    /// Puts each user's last item into the test and the one before into validation.
    fn leave_one_out(&mut self) {
        for (_, chosen) in &mut self.chosen {
            chosen.sort_by(|a, b| a.moment.total_cmp(&b.moment));
            for (part, choice) in [2, 1].into_iter().zip(chosen.iter_mut().rev()) {
                choice.part = part;
            }
        }
    }

    /// Builds a row for every item that a user has chosen others before. Items are in the order of their timestamps,
    /// those of one moment in the order of the files. A history holds no item of a later part: nothing of the test is
    /// trained on.
    fn rows(self, history: usize) -> Parts {
        let mut rows = Parts::default();
        for (user, mut chosen) in self.chosen {
            chosen.sort_by(|a, b| a.moment.total_cmp(&b.moment));
            let mut before: [Vec<u64>; 3] = Default::default();
            for Choice { part, item, .. } in chosen {
                let known = &before[part];
                if !known.is_empty() {
                    rows[part].push(Interaction {
                        user: user.clone(),
                        history: known[known.len().saturating_sub(history)..].to_vec(),
                        target: item,
                    });
                }
                for before in &mut before[part..] {
                    before.push(item);
                }
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests;
