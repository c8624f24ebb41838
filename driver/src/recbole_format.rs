//! RecBole's atomic files: `NAME.item` names the items, `NAME.inter` says who chose what and when. Fields are separated
//! by tabs, and the first line names them with their types, as in `item_id:token`.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use csv::{Reader, ReaderBuilder, StringRecord};

use crate::catalogue::{Catalogue, Interaction, Item};

/// The types that a header may give a field.
const TYPES: [&str; 4] = ["token", "token_seq", "float", "float_seq"];

/// What everybody's choices become: each user's last item is for the test, the one before for validation, and every
/// earlier one but the first, which has no history, for training.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LeaveOneOut {
    /// Rows to train on, user by user in the order in which users first come up.
    pub training: Vec<Interaction>,
    /// One row of each user with three items or more.
    pub validation: Vec<Interaction>,
    /// One row of each user with two items or more.
    pub test: Vec<Interaction>,
}

/// The items of a `.item` file, and how `.inter` files call them.
pub struct Items {
    /// The items. An id is the item's own where all of them are numbers, else its place in the file, from 1.
    pub catalogue: Catalogue,
    ids: HashMap<String, u64>,
}

/// The file of a folder that ends in `.extension`; the first by name where there are several.
pub fn find_file(folder: &Path, extension: &str) -> Result<Option<PathBuf>> {
    let unreadable = || format!("cannot read the folder {}", folder.display());
    let mut first: Option<PathBuf> = None;
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let fits = path.extension().is_some_and(|found| found == extension);
        if fits && first.as_ref().is_none_or(|first| path < *first) {
            first = Some(path);
        }
    }
    Ok(first)
}

/// Reads a `.item` file. The title is in `title_column`, or else in the one that is called title or name, or whose
/// name ends so.
pub fn read_items(path: &Path, title_column: Option<&str>) -> Result<Items> {
    let mut table = Table::open(path)?;
    let id = table.column("item_id")?;
    let title = match title_column {
        Some(name) => table.column(name)?,
        None => table.title_column()?,
    };
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut lines: HashMap<String, u64> = HashMap::new();
    while let Some(line) = table.next()? {
        let (id, title) = (table.field(id), table.field(title).trim());
        ensure!(
            !title.is_empty(),
            "{}, line {line}: expected a title for item {id}, found none",
            path.display()
        );
        rows.push((id.to_owned(), title.to_owned()));
        if let Some(first) = lines.insert(id.to_owned(), line) {
            bail!(
                "{}, line {line}: expected another item than {id}, which line {first} has already",
                path.display()
            );
        }
    }
    let numbers: Option<Vec<u64>> = rows.iter().map(|(id, _)| id.parse().ok()).collect();
    let numbers = numbers.unwrap_or_else(|| (1..=rows.len() as u64).collect());
    let mut items = Vec::with_capacity(rows.len());
    let mut ids = HashMap::with_capacity(rows.len());
    for ((name, title), id) in rows.into_iter().zip(numbers) {
        items.push(Item { id, title });
        ids.insert(name, id);
    }
    let catalogue = Catalogue::new(items).with_context(|| path.display().to_string())?;
    Ok(Items { catalogue, ids })
}

/// Reads a `.inter` file. Each user's items are put in the order of their timestamps, those of one moment in the order
/// of the file; a row's history holds the last `history` of them.
pub fn read_interactions(path: &Path, items: &Items, history: usize) -> Result<LeaveOneOut> {
    let mut table = Table::open(path)?;
    let user = table.column("user_id")?;
    let item = table.column("item_id")?;
    let timestamp = table.column("timestamp")?;
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut users: Vec<(String, Vec<(f64, u64)>)> = Vec::new();
    while let Some(line) = table.next()? {
        let place = || format!("{}, line {line}", path.display());
        let name = table.field(item);
        let Some(&item) = items.ids.get(name) else {
            bail!(
                "{}: expected an item of the .item file, found {name:?}",
                place()
            );
        };
        let text = table.field(timestamp);
        let moment = match text.parse::<f64>() {
            Ok(moment) if moment.is_finite() => moment,
            _ => bail!("{}: expected a timestamp, found {text:?}", place()),
        };
        let user = table.field(user);
        let next = users.len();
        let index = *places.entry(user.to_owned()).or_insert(next);
        if index == next {
            users.push((user.to_owned(), Vec::new()));
        }
        users[index].1.push((moment, item));
    }
    ensure!(
        !users.is_empty(),
        "{}: expected at least one row after the header",
        path.display()
    );
    let mut rows = LeaveOneOut::default();
    for (user, mut chosen) in users {
        chosen.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let chosen: Vec<u64> = chosen.into_iter().map(|(_, item)| item).collect();
        rows.add(&user, &chosen, history);
    }
    Ok(rows)
}

impl LeaveOneOut {
    fn add(&mut self, user: &str, chosen: &[u64], history: usize) {
        for place in 1..chosen.len() {
            let row = Interaction {
                user: user.to_owned(),
                history: chosen[place.saturating_sub(history)..place].to_vec(),
                target: chosen[place],
            };
            match chosen.len() - place {
                1 => self.test.push(row),
                2 => self.validation.push(row),
                _ => self.training.push(row),
            }
        }
    }
}

/// An atomic file, row by row.
struct Table {
    path: PathBuf,
    reader: Reader<File>,
    columns: Vec<String>,
    record: StringRecord,
}

impl Table {
    fn open(path: &Path) -> Result<Self> {
        let mut reader = ReaderBuilder::new()
            .delimiter(b'\t')
            .quoting(false)
            .from_path(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let headers = reader
            .headers()
            .with_context(|| path.display().to_string())?;
        let mut columns = Vec::with_capacity(headers.len());
        for header in headers {
            match header.split_once(':') {
                Some((name, kind)) if TYPES.contains(&kind) => columns.push(name.to_owned()),
                _ => bail!(
                    "{}, line 1: expected fields such as item_id:token, separated by tabs and typed {}, found {header:?}",
                    path.display(),
                    TYPES.join(", ")
                ),
            }
        }
        Ok(Self {
            path: path.to_owned(),
            reader,
            columns,
            record: StringRecord::new(),
        })
    }

    fn column(&self, name: &str) -> Result<usize> {
        let found = self.columns.iter().position(|column| column == name);
        found.with_context(|| self.expected(&format!("a column {name}")))
    }

    fn title_column(&self) -> Result<usize> {
        let ends = |column: &String| {
            ["title", "name"].iter().any(|last| {
                column == last
                    || column
                        .strip_suffix(last)
                        .is_some_and(|rest| rest.ends_with('_'))
            })
        };
        let found = self.columns.iter().position(ends);
        found.with_context(|| {
            self.expected("a column title or name (or --title-column to say which one it is)")
        })
    }

    fn expected(&self, what: &str) -> String {
        format!(
            "{}, line 1: expected {what}, found the columns {}",
            self.path.display(),
            self.columns.join(", ")
        )
    }

    /// Goes to the next row, and gives the number of its line.
    fn next(&mut self) -> Result<Option<u64>> {
        let found = self.reader.read_record(&mut self.record).with_context(|| {
            format!(
                "{}: expected {} fields, {}",
                self.path.display(),
                self.columns.len(),
                self.columns.join(", ")
            )
        })?;
        let line = self.record.position().map_or(0, csv::Position::line);
        Ok(found.then_some(line))
    }

    fn field(&self, column: usize) -> &str {
        self.record.get(column).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEMS: &str =
        "item_id:token\tmovie_title:token_seq\n10\tToy \"Story\"\n20\tBabe\n30\tHeat\n40\tAntz\n";

    fn write(folder: &tempfile::TempDir, name: &str, content: &str) -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn read(items: &str, interactions: &str, history: usize) -> Result<LeaveOneOut> {
        let folder = tempfile::tempdir().unwrap();
        let items = read_items(&write(&folder, "x.item", items), None)?;
        read_interactions(&write(&folder, "x.inter", interactions), &items, history)
    }

    fn row(user: &str, history: &[u64], target: u64) -> Interaction {
        Interaction {
            user: user.into(),
            history: history.to_vec(),
            target,
        }
    }

    #[test]
    fn the_last_item_is_for_the_test_the_one_before_for_validation_and_ties_keep_their_order() {
        let rows = read(
            ITEMS,
            "user_id:token\titem_id:token\ttimestamp:float\n\
             a\t10\t5\nb\t40\t1\na\t20\t2\na\t30\t5\na\t40\t5\nb\t10\t0.5\nc\t10\t1\n",
            2,
        )
        .unwrap();
        let expected = LeaveOneOut {
            training: vec![row("a", &[20], 10)],
            validation: vec![row("a", &[20, 10], 30)],
            test: vec![row("a", &[10, 30], 40), row("b", &[10], 40)],
        };
        assert_eq!(rows, expected);
    }

    #[test]
    fn titles_keep_their_quotes_and_names_that_are_no_numbers_become_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let items = read_items(&write(&folder, "x.item", ITEMS), None).unwrap();
        assert_eq!(items.catalogue.title(10), Some("Toy \"Story\""));
        let named = "item_id:token\ttitle:token_seq\nB00X\tEmma\n7\tMiddlemarch\n";
        let items = read_items(&write(&folder, "y.item", named), None).unwrap();
        assert_eq!(items.catalogue.title(1), Some("Emma"));
        assert_eq!(items.ids["7"], 2);
        assert_eq!(
            find_file(folder.path(), "item").unwrap(),
            Some(folder.path().join("x.item"))
        );
        assert_eq!(find_file(folder.path(), "inter").unwrap(), None);
    }

    #[test]
    fn what_is_wrong_is_said_with_file_line_and_what_was_expected() {
        const HEADER: &str = "user_id:token\titem_id:token\ttimestamp:float\n";
        let inter = |rows: &str| ("x.inter", ITEMS.to_owned(), format!("{HEADER}{rows}"));
        let item = |text: &str| ("x.item", text.to_owned(), HEADER.to_owned());
        for ((file, items, interactions), expected) in [
            (
                inter("a\t10\t1\na\t11\t2\n"),
                "line 3: expected an item of the .item file, found \"11\"",
            ),
            (
                inter("a\t10\tnoon\n"),
                "line 2: expected a timestamp, found \"noon\"",
            ),
            (
                inter("a\t10\tNaN\n"),
                "line 2: expected a timestamp, found \"NaN\"",
            ),
            (inter("a\t10\n"), "expected 3 fields"),
            (inter(""), "expected at least one row"),
            (
                item("item_id,title\n1,Emma\n"),
                "line 1: expected fields such as item_id:token",
            ),
            (
                item("item_id:token\tyear:float\n1\t1999\n"),
                "line 1: expected a column title or name",
            ),
            (
                item("movie:token\ttitle:token_seq\n1\tEmma\n"),
                "line 1: expected a column item_id",
            ),
            (
                item("item_id:token\ttitle:token_seq\n1\tA\n1\tB\n"),
                "line 3: expected another item than 1, which line 2 has",
            ),
            (
                item("item_id:token\ttitle:token_seq\n1\t \n"),
                "line 2: expected a title for item 1",
            ),
            (item("item_id:token\ttitle:token_seq\n"), "holds no item"),
        ] {
            let error = format!("{:#}", read(&items, &interactions, 10).unwrap_err());
            assert!(error.contains(file) && error.contains(expected), "{error}");
        }
    }
}
