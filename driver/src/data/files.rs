//! Finds the files of a catalogue and its users in a folder. An ambiguous folder is an error that names the candidates.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use crate::io::{entries, file_name};

/// The paper's file that names the items.
pub const TITLES_FILE: &str = "id2name4Rec.json";
/// The paper's file of test rows.
pub const TEST_FILE: &str = "test.csv";

/// The ends of the names of files that are read wherever they are there.
pub const DATA_ENDINGS: [&str; 5] = [".item", ".inter", ".item.json", ".inter.json", INDEX];

/// The end of the name of a semantic-ID index.
const INDEX: &str = ".index.json";

/// The names of RecBole's three benchmark files: to train on, for validation and for the test.
pub const PARTS: [[&str; 3]; 2] = [["part1", "part2", "part3"], ["train", "valid", "test"]];

/// The files of a folder in one of the formats that are read.
#[derive(Debug)]
pub enum DataFiles {
    /// The files of the paper.
    Paper(PaperFiles),
    /// Files that say themselves which rows are for training, validation and the test.
    Split(SplitFiles),
}

/// The files of the paper.
#[derive(Debug)]
pub struct PaperFiles {
    /// The file `id2name4Rec.json`.
    pub titles: PathBuf,
    /// The files `train*.csv`, of which one is used.
    training: Vec<PathBuf>,
    /// The file `test.csv`, if there is one.
    pub test: Option<PathBuf>,
}

/// Files of items and interactions: RecBole's atomic files, or those that come with a semantic-ID index.
#[derive(Debug)]
pub struct SplitFiles {
    /// The file of the items.
    pub items: Items,
    /// The files of the interactions.
    pub interactions: Interactions,
}

/// The file that names the items.
#[derive(Debug)]
pub enum Items {
    /// RecBole's `NAME.item`.
    Atomic(PathBuf),
    /// `NAME.item.json`.
    Json(PathBuf),
    /// `NAME.index.json`, for items that have codes and no titles.
    Index(PathBuf),
    /// A table whose columns are named on the command line.
    Table(PathBuf),
}

/// The files that say who chose what.
#[derive(Debug)]
pub enum Interactions {
    /// One file `NAME.inter`: each user's last item is for the test, and the one before for validation.
    Whole(PathBuf),
    /// Benchmark files: to train on, for validation and for the test.
    Parts([PathBuf; 3]),
    /// One file `NAME.inter.json`, split as `Whole` is.
    Users(PathBuf),
    /// MiniOneRec's files `train*.csv`, `valid*.csv` and `test*.csv`, of which the first is there.
    Rows([Option<PathBuf>; 3]),
    /// A table whose columns are named on the command line.
    Table(PathBuf),
}

/// Finds the semantic-ID index `NAME.index.json` of a folder, if there is one.
pub fn find_index(folder: &Path) -> Result<Option<PathBuf>> {
    the_only(named(&visible_files(folder)?, "", INDEX))
}

impl DataFiles {
    /// Finds the files of a folder.
    pub fn find(folder: &Path) -> Result<Self> {
        let files = visible_files(folder)?;
        let of = |ending: &str| named(&files, "", ending);
        let (atomic, json) = (of(".item"), of(".item.json"));
        let (inter, users) = (of(".inter"), of(".inter.json"));
        let titles = folder.join(TITLES_FILE);
        if files.contains(&titles) {
            let others = [&atomic[..], &json, &inter, &users].concat();
            ensure!(
                (atomic.is_empty() || inter.is_empty()) && (json.is_empty() || users.is_empty()),
                "{} holds both {TITLES_FILE}, which is the paper's format, and files of other formats, {}: leave those \
                 to read in the folder",
                folder.display(),
                names(&others)
            );
            return Ok(Self::Paper(PaperFiles::among(titles, files)));
        }
        let items = match the_only([&atomic[..], &json].concat())? {
            Some(file) if json.is_empty() => Some(Items::Atomic(file)),
            Some(file) => Some(Items::Json(file)),
            None => find_index(folder)?.map(Items::Index),
        };
        let interactions = match (&inter[..], the_only(users.clone())?) {
            ([_, ..], Some(_)) => bail!(
                "found {}: leave either NAME.inter or NAME.inter.json in the folder",
                names(&[inter, users].concat())
            ),
            ([_, ..], None) => Some(Interactions::among(inter.clone())?),
            ([], Some(users)) => Some(Interactions::Users(users)),
            // Beside RecBole's items, rows of CSV files are none of theirs.
            ([], None) if atomic.is_empty() => Interactions::rows(&files)?,
            ([], None) => None,
        };
        match (items, interactions) {
            (Some(items), Some(interactions)) => Ok(Self::Split(SplitFiles {
                items,
                interactions,
            })),
            _ => {
                let found = [atomic, json, of(INDEX), inter, users, of(".csv")].concat();
                bail!(
                    "{}: expected {TITLES_FILE} and train*.csv; NAME.item and NAME.inter; or NAME.index.json and \
                     NAME.item.json, and NAME.inter.json or train*.csv; found {}",
                    folder.display(),
                    match found.is_empty() {
                        true => "none of them".into(),
                        false => format!("only {}", names(&found)),
                    }
                )
            }
        }
    }
}

impl PaperFiles {
    fn among(titles: PathBuf, files: Vec<PathBuf>) -> Self {
        let test = titles.with_file_name(TEST_FILE);
        Self {
            titles,
            test: files.contains(&test).then_some(test),
            training: named(&files, "train", ".csv"),
        }
    }

    /// Returns the file of training rows: the one that is named, or the only one.
    pub fn training<'a>(&'a self, named: Option<&'a Path>) -> Result<&'a Path> {
        match (named, &self.training[..]) {
            (Some(named), _) => Ok(named),
            (None, [file]) => Ok(file),
            (None, []) => bail!(
                "expected a file train*.csv beside {}",
                self.titles.display()
            ),
            (None, several) => bail!(
                "there are several files of training rows, {}: name one with --train of msl train, or leave one in the \
                 folder",
                names(several)
            ),
        }
    }
}

impl Interactions {
    /// Finds MiniOneRec's files, if there is one to train on.
    fn rows(files: &[PathBuf]) -> Result<Option<Self>> {
        let part = |name: &str| the_only(named(files, name, ".csv"));
        let rows = [part("train")?, part("valid")?, part("test")?];
        Ok(rows[0].is_some().then_some(Self::Rows(rows)))
    }

    fn among(files: Vec<PathBuf>) -> Result<Self> {
        for parts in PARTS {
            let expected = parts.map(|part| in_place_of_part(&files[0], part));
            if files.len() == 3 && expected.iter().all(|path| files.contains(path)) {
                return Ok(Self::Parts(expected));
            }
        }
        let is_part = |path: &PathBuf| {
            let stem = path.with_extension("");
            let part = stem.extension().unwrap_or_default();
            PARTS.as_flattened().iter().any(|known| part == *known)
        };
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

/// Replaces the part of a name `NAME.PART.inter`.
fn in_place_of_part(path: &Path, part: &str) -> PathBuf {
    let mut name = path
        .with_extension("")
        .with_extension(part)
        .into_os_string();
    name.push(".inter");
    name.into()
}

/// Returns the only one of these files, if there is any.
fn the_only(files: Vec<PathBuf>) -> Result<Option<PathBuf>> {
    ensure!(
        files.len() < 2,
        "there are several files in the place of one, {}: leave the one to read in the folder",
        names(&files)
    );
    Ok(files.into_iter().next())
}

/// Returns the files whose names begin and end so.
fn named(files: &[PathBuf], beginning: &str, ending: &str) -> Vec<PathBuf> {
    let fits = |path: &&PathBuf| {
        let name = file_name(path);
        name.starts_with(beginning) && name.ends_with(ending)
    };
    files.iter().filter(fits).cloned().collect()
}

fn names(files: &[PathBuf]) -> String {
    let names: Vec<String> = (files.iter())
        .map(|path| path.display().to_string())
        .collect();
    names.join(", ")
}

/// Lists the files of a folder by name, without hidden ones: macOS leaves `._NAME` beside `NAME`.
fn visible_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = entries(folder)?;
    files.retain(|path| !file_name(path).starts_with('.') && !path.is_dir());
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Returns what is found among empty files of these names.
    fn find(names: &str, training: Option<&Path>) -> Result<Vec<String>> {
        let folder = tempfile::tempdir()?;
        for name in names.split(' ') {
            fs::write(folder.path().join(name), "")?;
        }
        fs::create_dir(folder.path().join("old.inter"))?;
        let files = match DataFiles::find(folder.path())? {
            DataFiles::Paper(files) => {
                let training = files.training(training)?.to_owned();
                [files.titles, training]
                    .into_iter()
                    .chain(files.test)
                    .collect()
            }
            DataFiles::Split(files) => {
                let (Items::Atomic(items)
                | Items::Json(items)
                | Items::Index(items)
                | Items::Table(items)) = files.items;
                let interactions = match files.interactions {
                    Interactions::Whole(file)
                    | Interactions::Users(file)
                    | Interactions::Table(file) => vec![file],
                    Interactions::Parts(parts) => parts.to_vec(),
                    Interactions::Rows(files) => files.into_iter().flatten().collect(),
                };
                [vec![items], interactions].concat()
            }
        };
        let name = |path: PathBuf| file_name(&path);
        Ok(files.into_iter().map(name).collect())
    }

    #[test]
    fn the_files_of_either_format_are_found_among_hidden_and_other_ones() {
        for (files, expected) in [
            (
                "._x.item ._x.inter x.item x.inter ._id2name4Rec.json x.user",
                "x.item x.inter",
            ),
            (
                "x.item x.part2.inter x.part1.inter x.part3.inter ._x.part1.inter",
                "x.item x.part1.inter x.part2.inter x.part3.inter",
            ),
            (
                "x.y.test.inter x.y.train.inter x.y.item x.y.valid.inter",
                "x.y.item x.y.train.inter x.y.valid.inter x.y.test.inter",
            ),
            (
                "id2name4Rec.json train_10.csv ._train_9.csv test.csv x.item",
                "id2name4Rec.json train_10.csv test.csv",
            ),
            (
                "x.index.json x.item.json x.inter.json x.user.json",
                "x.item.json x.inter.json",
            ),
            ("x.index.json x.inter.json", "x.index.json x.inter.json"),
            ("x.item.json x.inter.json", "x.item.json x.inter.json"),
            (
                "x.index.json x.item.json test.csv train_5.csv valid.csv x.csv",
                "x.item.json train_5.csv valid.csv test.csv",
            ),
            ("x.index.json x.item x.inter train.csv", "x.item x.inter"),
            (
                "x.index.json id2name4Rec.json train.csv",
                "id2name4Rec.json train.csv",
            ),
        ] {
            assert_eq!(find(files, None).unwrap().join(" "), expected);
        }
        let several = "id2name4Rec.json train_1.csv train_2.csv";
        let named = find(several, Some(Path::new("elsewhere/rows.csv"))).unwrap();
        assert_eq!(named, ["id2name4Rec.json", "rows.csv"]);
    }

    #[test]
    fn files_that_cannot_be_told_apart_are_named() {
        for (files, expected) in [
            ("x.item y.item x.inter", &["x.item", "y.item"][..]),
            ("x.item x.inter y.inter", &["x.inter", "y.inter"]),
            ("x.item x.item.json x.inter", &["x.item", "x.item.json"]),
            (
                "x.index.json x.inter x.inter.json",
                &["x.inter, ", "x.inter.json", "either"],
            ),
            (
                "x.index.json y.index.json x.inter.json",
                &["x.index.json", "y.index.json"],
            ),
            (
                "x.item.json train_1.csv train_2.csv",
                &["train_1.csv", "train_2.csv"],
            ),
            ("x.index.json x.item.json", &["found only", "x.index.json"]),
            (
                "x.item x.part1.inter",
                &["x.part1.inter", "NAME.part2.inter"],
            ),
            (
                "x.item x.inter x.part1.inter x.part2.inter x.part3.inter",
                &["x.part3.inter", "x.inter", "no .inter file beside them"],
            ),
            (
                "x.item x.train.inter x.part2.inter x.test.inter",
                &["x.train.inter", "x.part2.inter"],
            ),
            (
                "x.item x.part1.inter x.part2.inter y.part3.inter",
                &["x.part1.inter", "y.part3.inter"],
            ),
            (
                "id2name4Rec.json train_1.csv train_2.csv",
                &["train_1.csv", "train_2.csv", "--train"],
            ),
            (
                "id2name4Rec.json train.csv x.item x.inter",
                &["both id2name4Rec.json", ".item"],
            ),
            ("id2name4Rec.json", &["expected a file train*.csv"]),
            ("x.item", &["found only", "x.item"]),
            ("notes.txt", &["found none of them"]),
        ] {
            let error = format!("{:#}", find(files, None).unwrap_err());
            for part in expected {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
    }
}
