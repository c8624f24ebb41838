//! Reads who chose what and when, and splits it into rows to train on, for validation and for the test.
//!
//! Interactions that somebody has split come as RecBole's benchmark files (`benchmark_filename`): `NAME.part1.inter` to
//! train on, `NAME.part2.inter` for validation, `NAME.part3.inter` for the test; or `train`, `valid` and `test` in their
//! place. With a column `item_id_list`, each of their rows has its own history.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail, ensure};

use crate::data::{
    arguments::{SplitBy, TableArguments},
    catalogue::{Catalogue, Interaction},
    files::Interactions,
    json_format,
    rows::{has_histories, read_rows},
    summary::DataReport,
    table::{Layout, Table},
};

/// The columns of a table of choices, one a row.
pub struct Columns<'a> {
    /// The column of the user.
    user: &'a str,
    /// The column of the item's id.
    item: &'a str,
    /// The column of the time; `None` where rows are in the order of time.
    time: Option<&'a str>,
}

/// The columns of RecBole's interactions.
const ATOMIC: Columns = Columns {
    user: "user_id",
    item: "item_id",
    time: Some(TIME),
};
const TIME: &str = "timestamp";

/// Rows to train on, for validation and for the test; user by user in the order in which users first come up, or as the
/// files have them where each row has its own history.
pub type Parts = [Vec<Interaction>; 3];

/// The choices that were read of all users.
pub enum Read {
    /// The choices of users, which are still to be split.
    Choices(Users),
    /// The choices of users that somebody has split.
    Split(Users),
    /// Rows that somebody has made.
    Rows(Parts),
}

/// Reads the interactions with the items of a catalogue. Histories that the rows of a file have themselves are cut to their
/// last `history` items.
pub fn read_interactions(
    files: &Interactions,
    tables: &TableArguments,
    catalogue: &Catalogue,
    history: usize,
    report: &mut DataReport,
) -> Result<Read> {
    let mut users = Users::default();
    let rows = |files: &[Option<PathBuf>], layout, report: &mut DataReport| {
        let mut parts = Parts::default();
        for (rows, file) in parts.iter_mut().zip(files) {
            if let Some(file) = file {
                *rows = read_rows(file, layout, history, catalogue, report)?;
            }
        }
        anyhow::Ok(Read::Rows(parts))
    };
    match files {
        Interactions::Whole(file) => {
            users.read(file, Layout::Atomic, &ATOMIC, 0, catalogue, report)?;
        }
        Interactions::Table(file) => {
            let layout = Layout::of(file)?;
            let has_time = Table::open(file, layout)?.find_column(TIME).is_some();
            let columns = Columns {
                user: tables.user_column.as_deref().unwrap_or("user_id"),
                item: tables.item_column(),
                time: tables.time_column.as_deref().or(has_time.then_some(TIME)),
            };
            users.read(file, layout, &columns, 0, catalogue, report)?;
        }
        Interactions::Users(file) => json_format::read_users(file, catalogue, &mut users, report)?,
        Interactions::Rows(files) => return rows(files, Layout::CommaSeparated, report),
        Interactions::Parts(files) if has_histories(&files[0])? => {
            return rows(&files.clone().map(Some), Layout::Atomic, report);
        }
        Interactions::Parts(files) => {
            for (part, file) in files.iter().enumerate() {
                users.read(file, Layout::Atomic, &ATOMIC, part, catalogue, report)?;
            }
            return Ok(Read::Split(users));
        }
    }
    Ok(Read::Choices(users))
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
        layout: Layout,
        columns: &Columns,
        part: usize,
        catalogue: &Catalogue,
        report: &mut DataReport,
    ) -> Result<()> {
        let mut table = Table::open(path, layout)?;
        let (user, item) = (table.column(columns.user)?, table.column(columns.item)?);
        let time = columns.time.map(|time| table.column(time)).transpose()?;
        let (mut count, mut known) = (0, 0);
        while table.next_row()?.is_some() {
            count += 1;
            let moment = match time.map(|time| table.field(time)) {
                None => count as f64,
                Some(text) => match text.parse::<f64>() {
                    Ok(moment) if moment.is_finite() => moment,
                    _ => bail!(
                        "{}, column {}: expected a timestamp, a number, found {text:?}",
                        table.place(),
                        columns.time.unwrap_or_default()
                    ),
                },
            };
            let name = table.field(item);
            let Some(item) = catalogue.number(name) else {
                report.leave_out_row_of(&table.place(), name)?;
                continue;
            };
            let user = table.field(user);
            if user.is_empty() {
                report.leave_out_row(&table.place(), "it names no user")?;
                continue;
            }
            self.add(user, Choice { moment, part, item });
            known += 1;
        }
        let read = [columns.user, columns.item].into_iter().chain(columns.time);
        report.add_file(path, &read.collect::<Vec<_>>(), count);
        ensure!(known > 0, report.nothing_left(path, count));
        Ok(())
    }

    /// Leaves out users and items with fewer than `least` choices, until all that are left have as many. Returns which of
    /// the `items` are left.
    pub fn k_core(&mut self, least: usize, items: usize) -> Vec<bool> {
        let mut left = vec![true; items];
        loop {
            let mut counts = vec![0; items];
            for choice in self.chosen.iter().flat_map(|(_, chosen)| chosen) {
                counts[choice.item as usize] += 1;
            }
            for (left, count) in left.iter_mut().zip(counts) {
                *left = count >= least;
            }
            let users = self.chosen.len();
            let mut choices = 0;
            for (_, chosen) in &mut self.chosen {
                let before = chosen.len();
                chosen.retain(|choice| left[choice.item as usize]);
                choices += before - chosen.len();
            }
            self.chosen.retain(|(_, chosen)| chosen.len() >= least);
            if users == self.chosen.len() && choices == 0 {
                return left;
            }
        }
    }

    /// Gives the items other numbers. All of them have one.
    pub fn renumber(&mut self, number: impl Fn(u64) -> u64) {
        for choice in self.chosen.iter_mut().flat_map(|(_, chosen)| chosen) {
            choice.item = number(choice.item);
        }
    }

    /// Splits the choices into those to train on, for validation and for the test.
    pub fn split(&mut self, by: SplitBy) {
        match by {
            SplitBy::LeaveOneOut => self.leave_one_out(),
            SplitBy::Time => self.split_by_time(),
        }
    }

    /// Puts the last tenth of all choices into the test and the tenth before into validation. Choices of one moment are in
    /// one part.
    fn split_by_time(&mut self) {
        let choices = self.chosen.iter().flat_map(|(_, chosen)| chosen);
        let mut moments: Vec<f64> = choices.map(|choice| choice.moment).collect();
        moments.sort_by(f64::total_cmp);
        let tenth = moments.len() / 10;
        let begin = |tenths: usize| {
            moments
                .get(moments.len() - (tenths * tenth).max(1))
                .copied()
        };
        let (Some(validation), Some(test)) = (begin(2), begin(1)) else {
            return;
        };
        for choice in self.chosen.iter_mut().flat_map(|(_, chosen)| chosen) {
            choice.part =
                usize::from(choice.moment >= validation) + usize::from(choice.moment >= test);
        }
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
    pub fn rows(self, history: usize) -> Parts {
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
