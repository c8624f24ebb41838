//! RecBole's atomic files: `NAME.item` names the items, `NAME.inter` says who chose what and when. Fields are separated
//! by tabs, and the first line names them with their types, as in `item_id:token`.
//!
//! Interactions that somebody has split come as benchmark files (RecBole's `benchmark_filename`): `NAME.part1.inter` to
//! train on, `NAME.part2.inter` for validation, `NAME.part3.inter` for the test; or `train`, `valid` and `test` in their
//! place. With a column `item_id_list`, each of their rows has its own history.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::{
    catalogue::{Catalogue, Interaction, Item},
    data_report::DataReport,
    text_table::{Layout, Table},
};

/// What the three benchmark files are called, in the order of [`Parts`].
const PARTS: [[&str; 3]; 2] = [["part1", "part2", "part3"], ["train", "valid", "test"]];
/// The column of the history of a row of a benchmark file.
const HISTORY_COLUMN: &str = "item_id_list";
/// The columns of a row without one.
const COLUMNS: [&str; 3] = ["user_id", "item_id", "timestamp"];

/// The files of one data set.
#[derive(Debug, PartialEq, Eq)]
pub struct Files {
    /// `NAME.item`.
    pub items: PathBuf,
    /// Who chose what.
    pub interactions: Interactions,
}

/// The files that say who chose what.
#[derive(Debug, PartialEq, Eq)]
pub enum Interactions {
    /// `NAME.inter`: each user's last item is for the test, and the one before for validation.
    Whole(PathBuf),
    /// Benchmark files: to train on, for validation and for the test.
    Parts([PathBuf; 3]),
}

/// Rows to train on, for validation and for the test; user by user in the order in which users first come up, or as the
/// files have them where each row has its own history.
pub type Parts = [Vec<Interaction>; 3];

impl Files {
    /// The only atomic files among those of a folder, or `None` if there are none of either kind. Files that cannot be
    /// told apart are an error that names them.
    pub fn find(files: &[PathBuf]) -> Result<Option<Self>> {
        let of = |extension: &str| -> Vec<PathBuf> {
            let fits = |path: &&PathBuf| path.extension().is_some_and(|found| found == extension);
            files.iter().filter(fits).cloned().collect()
        };
        let (items, interactions) = (of("item"), of("inter"));
        if items.is_empty() || interactions.is_empty() {
            return Ok(None);
        }
        let [items] = <[PathBuf; 1]>::try_from(items).map_err(|items| {
            anyhow!(
                "there are several .item files, {}: leave the one to read in the folder",
                names(&items)
            )
        })?;
        Ok(Some(Self {
            items,
            interactions: Interactions::find(interactions)?,
        }))
    }
}

impl Interactions {
    fn find(files: Vec<PathBuf>) -> Result<Self> {
        let is_part = |path: &PathBuf| PARTS.as_flattened().contains(&part(path).as_str());
        for parts in PARTS {
            let expected = parts.map(|part| {
                let mut name = files[0]
                    .with_extension("")
                    .with_extension(part)
                    .into_os_string();
                name.push(".inter");
                PathBuf::from(name)
            });
            if files.len() == 3 && expected.iter().all(|path| files.contains(path)) {
                return Ok(Self::Parts(expected));
            }
        }
        match &files[..] {
            [file] if !is_part(file) => Ok(Self::Whole(file.clone())),
            _ => bail!(
                "found {}: expected one NAME.inter, or the three benchmark files NAME.part1.inter (to train on), \
                 NAME.part2.inter (validation) and NAME.part3.inter (test), or NAME.train.inter, NAME.valid.inter and \
                 NAME.test.inter, and no .inter file beside them",
                names(&files)
            ),
        }
    }
}

/// The part that a benchmark file is, as in `NAME.PART.inter`.
fn part(path: &Path) -> String {
    let stem = path.with_extension("");
    stem.extension()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn names(files: &[PathBuf]) -> String {
    let names: Vec<String> = files
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    names.join(", ")
}

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
    while let Some(line) = table.next()? {
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

/// The column of the titles: exact names come before names that end so, and of these there may be one.
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

/// Whether the rows of a benchmark file have their own histories.
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
    while let Some(line) = table.next()? {
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

/// What users chose, in the order in which the users first come up.
#[derive(Default)]
struct Users {
    places: HashMap<String, usize>,
    chosen: Vec<(String, Vec<Choice>)>,
}

struct Choice {
    moment: f64,
    /// 0 to train on, 1 for validation, 2 for the test.
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
        while let Some(line) = table.next()? {
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

    /// A row for every item but those before which a user has none. Items are in the order of their timestamps, those of
    /// one moment in the order of the files. A history holds no item of a later part: nothing of the test is trained on.
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
mod tests {
    use std::fs;

    use super::*;

    const ITEMS: &str =
        "item_id:token\tmovie_title:token_seq\n10\tToy \"Story\"\n20\tBabe\n30\tHeat\n40\tAntz\n";
    const HEADER: &str = "user_id:token\titem_id:token\ttimestamp:float\n";

    fn write(folder: &tempfile::TempDir, name: &str, content: &str) -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn titles(items: &str, column: Option<&str>) -> Result<Vec<(String, String)>> {
        let folder = tempfile::tempdir()?;
        let path = write(&folder, "x.item", items);
        let catalogue = read_items(&path, column, &mut DataReport::new(false))?;
        let items = catalogue.items().iter().cloned();
        Ok(items.map(|item| (item.id, item.title)).collect())
    }

    fn read(items: &str, files: &[(&str, &str)], history: usize) -> Result<(Parts, DataReport)> {
        let folder = tempfile::tempdir()?;
        let mut report = DataReport::new(false);
        let items = write(&folder, "x.item", items);
        let paths = files.iter().map(|(name, text)| write(&folder, name, text));
        let mut paths: Vec<PathBuf> = paths.collect();
        paths.push(items);
        let files = Files::find(&paths)?.context("there are no atomic files")?;
        let catalogue = read_items(&files.items, None, &mut report)?;
        let rows = read_interactions(&files.interactions, &catalogue, history, &mut report)?;
        Ok((rows, report))
    }

    /// Items are named by their numbers: 0 is item 10, 1 is item 20 and so on.
    fn row(user: &str, history: &[u64], target: u64) -> Interaction {
        Interaction {
            user: user.into(),
            history: history.to_vec(),
            target,
        }
    }

    #[test]
    fn the_last_item_is_for_the_test_the_one_before_for_validation_and_ties_keep_their_order() {
        let rows = "a\t10\t5\nb\t40\t1\na\t20\t2\na\t30\t5\na\t40\t5\nb\t10\t0.5\nc\t10\t1\n";
        let (rows, _) = read(ITEMS, &[("x.inter", &format!("{HEADER}{rows}"))], 2).unwrap();
        let expected = [
            vec![row("a", &[1], 0)],
            vec![row("a", &[1, 0], 2)],
            vec![row("a", &[0, 2], 3), row("b", &[0], 3)],
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn benchmark_files_are_what_their_names_say_and_no_history_holds_what_a_later_part_is_for() {
        let parts = [
            "a\t10\t1\na\t20\t2\na\t30\t4\n",
            "a\t40\t3\n",
            "a\t10\t5\nb\t10\t1\n",
        ];
        let texts = parts.map(|rows| format!("{HEADER}{rows}"));
        let expected = [
            // The item of the validation came before the last one of training, which must not know it.
            vec![row("a", &[0], 1), row("a", &[0, 1], 2)],
            vec![row("a", &[0, 1], 3)],
            vec![row("a", &[3, 2], 0)],
        ];
        for names in PARTS {
            let names = names.map(|part| format!("x.{part}.inter"));
            let files: Vec<(&str, &str)> = names
                .iter()
                .zip(&texts)
                .map(|(name, text)| (&name[..], &text[..]))
                .collect();
            assert_eq!(read(ITEMS, &files, 2).unwrap().0, expected);
        }
    }

    #[test]
    fn rows_of_benchmark_files_that_have_a_history_keep_it() {
        let header = "user_id:token\titem_id:token\titem_id_list:token_seq\n";
        let texts = [
            "a\t10\t20 30 40\n",
            "a\t20\t10 10\nb\t10\t\n",
            "a\t30\t10\na\t30\t10 99\n",
        ]
        .map(|rows| format!("{header}{rows}"));
        let names = ["x.part1.inter", "x.part2.inter", "x.part3.inter"];
        let files: Vec<(&str, &str)> = names
            .into_iter()
            .zip(texts.iter().map(String::as_str))
            .collect();
        let (rows, report) = read(ITEMS, &files, 2).unwrap();
        let expected = [
            vec![row("a", &[2, 3], 0)],
            vec![row("a", &[0, 0], 1)],
            vec![row("a", &[0], 2)],
        ];
        assert_eq!(rows, expected);
        let left_out = report.rows_left_out.examples.join("; ");
        for part in [
            "x.part2.inter, line 3: item_id_list is empty",
            "x.part3.inter, line 3: item \"99\"",
        ] {
            assert!(left_out.contains(part), "{left_out}");
        }
    }

    #[test]
    fn ids_and_the_quotes_of_titles_are_kept() {
        let items = "item_id:token\ttitle:token_seq\nB00X\t\"Emma\"\n7\tA\n007\tB\n";
        let expected = [("B00X", "\"Emma\""), ("7", "A"), ("007", "B")];
        let expected = expected.map(|(id, title)| (id.to_owned(), title.to_owned()));
        assert_eq!(titles(items, None).unwrap(), expected);
        let rows = format!("{HEADER}u\t007\t1\nu\t7\t2\nu\tB00X\t3\nu\t007\t4\n");
        let ([training, _, test], _) = read(items, &[("x.inter", &rows)], 9).unwrap();
        assert_eq!(training, [row("u", &[2], 1)]);
        assert_eq!(test, [row("u", &[2, 1, 0], 2)]);
    }

    #[test]
    fn exact_names_of_the_title_column_come_before_names_that_end_so() {
        let column = |columns: &[&str]| {
            let header: Vec<String> = columns
                .iter()
                .map(|column| format!("{column}:token"))
                .collect();
            let text = format!(
                "item_id:token\t{}\n1\t{}\n",
                header.join("\t"),
                columns.join("\t")
            );
            titles(&text, None).map(|items| items[0].1.clone())
        };
        for (columns, expected) in [
            (&["category_name", "title"][..], "title"),
            (&["brand_name", "name"], "name"),
            (&["name", "title"], "title"),
            (&["category_name", "item_name"], "item_name"),
            (&["year", "movie_title"], "movie_title"),
        ] {
            assert_eq!(column(columns).unwrap(), expected);
        }
        let error = column(&["category_name", "product_name"])
            .unwrap_err()
            .to_string();
        for part in ["category_name, product_name", "--title-column"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn items_without_a_title_and_rows_of_unknown_items_are_left_out() {
        let items = format!("{ITEMS}50\t \n");
        let rows = format!("{HEADER}a\t10\t1\na\t50\t2\na\t99\t3\na\t20\t4\na\t30\t5\na\t40\t6\n");
        let ([training, _, test], report) = read(&items, &[("x.inter", &rows)], 9).unwrap();
        assert_eq!(training, [row("a", &[0], 1)]);
        assert_eq!(test, [row("a", &[0, 1, 2], 3)]);
        assert_eq!(
            (report.items_left_out.count, report.rows_left_out.count),
            (1, 2)
        );
        let places = [
            "x.item, line 6: item \"50\" has no title",
            "x.inter, line 3: item \"50\" has no title",
            "x.inter, line 4: item \"99\" is not in the catalogue",
        ];
        let examples = [
            report.items_left_out.examples,
            report.rows_left_out.examples,
        ]
        .concat();
        assert!(
            examples
                .iter()
                .zip(places)
                .all(|(example, place)| example.ends_with(place)),
            "{examples:?}"
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_file_line_and_what_was_expected() {
        let inter = |rows: &str| ("x.inter", ITEMS.to_owned(), format!("{HEADER}{rows}"));
        let item = |text: &str| ("x.item", text.to_owned(), HEADER.to_owned());
        for ((file, items, interactions), expected) in [
            (
                inter("a\t11\t2\n"),
                "expected rows of items that the catalogue has, found none",
            ),
            (
                inter("a\t10\tnoon\n"),
                "line 2: expected a timestamp, found \"noon\"",
            ),
            (
                inter("a\t10\tNaN\n"),
                "line 2: expected a timestamp, found \"NaN\"",
            ),
            (inter("a\t10\n"), "line 2: expected 3 fields"),
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
                "line 3: expected another item than \"1\", which line 2 has",
            ),
            (item("item_id:token\ttitle:token_seq\n"), "holds no item"),
        ] {
            let error = read(&items, &[("x.inter", &interactions)], 10).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(file) && error.contains(expected), "{error}");
        }
    }
}
