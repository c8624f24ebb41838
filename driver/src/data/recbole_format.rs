//! Reads RecBole's atomic files: `NAME.item` names the items, `NAME.inter` says who chose what and when. Fields are
//! separated by tabs, and the first line names them with their types, as in `item_id:token`.
//!
//! Interactions that somebody has split come as benchmark files (RecBole's `benchmark_filename`): `NAME.part1.inter` to
//! train on, `NAME.part2.inter` for validation, `NAME.part3.inter` for the test; or `train`, `valid` and `test` in their
//! place. With a column `item_id_list`, each of their rows has its own history.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail, ensure};

use crate::data::{
    catalogue::{Catalogue, Interaction, Item},
    files::Interactions,
    summary::DataReport,
    text_table::{Layout, Table},
};

/// The column of the history of a row of a benchmark file.
const HISTORY_COLUMN: &str = "item_id_list";
/// The columns of a row without one.
const COLUMNS: [&str; 3] = ["user_id", "item_id", "timestamp"];

/// Rows to train on, for validation and for the test; user by user in the order in which users first come up, or as the
/// files have them where each row has its own history.
pub type Parts = [Vec<Interaction>; 3];

/// Reads a `.item` file. The titles are in `title_column`, or else in the one that is called title or name, or the only
/// one whose name ends so.
pub fn read_items(
    path: &Path,
    title_column: Option<&str>,
    report: &mut DataReport,
) -> Result<Catalogue> {
    let mut table = Table::open(path, Layout::Atomic)?;
    let id = table.column("item_id")?;
    let title = match title_column {
        Some(name) => table.column(name)?,
        None => find_title_column(&table)?,
    };
    let mut items: Vec<Item> = Vec::new();
    let mut lines: HashMap<String, u64> = HashMap::new();
    while let Some(line) = table.next_row()? {
        let place = format!("{}, line {line}", path.display());
        let (id, title) = (table.field(id), table.field(title).trim());
        if let Some(first) = lines.insert(id.to_owned(), line) {
            bail!("{place}: expected another item than {id:?}, which line {first} has already");
        }
        if title.is_empty() {
            report.leave_out_item(&place, id)?;
            continue;
        }
        items.push(Item {
            id: id.to_owned(),
            title: title.to_owned(),
        });
    }
    report.add_file(path, &["item_id", &table.columns()[title]], lines.len());
    Catalogue::new(items).with_context(|| path.display().to_string())
}

/// Finds the column of the titles. Exact names come before names that end so, of which there may be one.
fn find_title_column(table: &Table) -> Result<usize> {
    const NAMES: [&str; 4] = ["title", "name", "item_title", "item_name"];
    if let Some(exact) = NAMES.iter().find_map(|name| table.find_column(name)) {
        return Ok(exact);
    }
    let ends = |column: &&String| column.ends_with("_title") || column.ends_with("_name");
    match table.columns().iter().filter(ends).collect::<Vec<_>>()[..] {
        [one] => table.column(one),
        [] => Err(table.expected(
            "a column title or name (or --title-column to say which one it is)",
        )),
        _ => Err(table.expected(
            "one column title or name, or one that ends so (or --title-column to say which one it is)",
        )),
    }
}

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
        Interactions::Parts(files) if has_histories(&files[0])? => {
            let mut parts = Parts::default();
            for (rows, file) in parts.iter_mut().zip(files) {
                *rows = read_rows(file, catalogue, history, report)?;
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

/// Tells whether the rows of a benchmark file have their own histories.
fn has_histories(path: &Path) -> Result<bool> {
    let table = Table::open(path, Layout::Atomic)?;
    Ok(table.find_column(HISTORY_COLUMN).is_some())
}

/// Reads a benchmark file whose rows have their own histories: the items are separated by spaces.
fn read_rows(
    path: &Path,
    catalogue: &Catalogue,
    history: usize,
    report: &mut DataReport,
) -> Result<Vec<Interaction>> {
    let mut table = Table::open(path, Layout::Atomic)?;
    let [user, item, list] =
        ["user_id", "item_id", HISTORY_COLUMN].map(|column| table.column(column));
    let (user, item, list) = (user?, item?, list?);
    let (mut rows, mut count) = (Vec::new(), 0);
    while let Some(line) = table.next_row()? {
        count += 1;
        let place = format!("{}, line {line}", path.display());
        let names = table.field(list).split_whitespace();
        let mut numbers = Vec::new();
        let mut unknown = None;
        for name in names.chain([table.field(item)]) {
            match catalogue.number(name) {
                Some(number) => numbers.push(number),
                None => unknown = unknown.or(Some(name)),
            }
        }
        match (unknown, numbers.pop()) {
            (Some(name), _) => report.leave_out_row_of(&place, name)?,
            (None, Some(target)) if !numbers.is_empty() => rows.push(Interaction {
                user: table.field(user).to_owned(),
                history: numbers.split_off(numbers.len().saturating_sub(history)),
                target,
            }),
            _ => report.leave_out_row(&place, &format!("{HISTORY_COLUMN} is empty"))?,
        }
    }
    report.add_file(path, &["user_id", "item_id", HISTORY_COLUMN], count);
    ensure!(!rows.is_empty(), report.nothing_left(path, count));
    Ok(rows)
}

/// The choices of users, in the order in which the users first come up.
#[derive(Default)]
struct Users {
    places: HashMap<String, usize>,
    chosen: Vec<(String, Vec<Choice>)>,
}

struct Choice {
    moment: f64,
    /// The part that it belongs to: 0 for training, 1 for validation, 2 for the test.
    part: usize,
    item: u64,
}

impl Users {
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
            let user = table.field(user);
            let next = self.chosen.len();
            let index = *self.places.entry(user.to_owned()).or_insert(next);
            if index == next {
                self.chosen.push((user.to_owned(), Vec::new()));
            }
            self.chosen[index].1.push(Choice { moment, part, item });
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
