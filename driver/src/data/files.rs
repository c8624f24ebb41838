//! Finds the files of a catalogue and its users in a folder. An ambiguous folder is an error that names the candidates.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use crate::io::{entries, file_name};

/// The paper's file that names the items.
pub const TITLES_FILE: &str = "id2name4Rec.json";
/// The paper's file of test rows.
pub const TEST_FILE: &str = "test.csv";

/// The names of RecBole's three benchmark files: to train on, for validation and for the test.
pub const PARTS: [[&str; 3]; 2] = [["part1", "part2", "part3"], ["train", "valid", "test"]];

/// The files of a folder in one of the formats that are read.
#[derive(Debug)]
pub enum DataFiles {
    /// The files of the paper.
    Paper(PaperFiles),
    /// The files of RecBole.
    Atomic(AtomicFiles),
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

/// RecBole's atomic files.
#[derive(Debug)]
pub struct AtomicFiles {
    /// The file `NAME.item`.
    pub items: PathBuf,
    /// The files `NAME.inter`, or those of the parts.
    pub interactions: Interactions,
}

/// The files that say who chose what.
#[derive(Debug)]
pub enum Interactions {
    /// One file `NAME.inter`: each user's last item is for the test, and the one before for validation.
    Whole(PathBuf),
    /// Benchmark files: to train on, for validation and for the test.
    Parts([PathBuf; 3]),
}

impl DataFiles {
    /// Finds the files of a folder.
    pub fn find(folder: &Path) -> Result<Self> {
        let files = visible_files(folder)?;
        let of = |extension: &str| -> Vec<PathBuf> {
            let fits = |path: &&PathBuf| path.extension().is_some_and(|found| found == extension);
            files.iter().filter(fits).cloned().collect()
        };
        let (items, interactions) = (of("item"), of("inter"));
        let atomic = !items.is_empty() && !interactions.is_empty();
        let titles = folder.join(TITLES_FILE);
        match (files.contains(&titles), atomic) {
            (true, true) => bail!(
                "{} holds both {TITLES_FILE}, which is the paper's format, and .item and .inter files, which are \
                 RecBole's: leave those to read in the folder",
                folder.display()
            ),
            (true, false) => Ok(Self::Paper(PaperFiles::among(titles, files))),
            (false, true) => Ok(Self::Atomic(AtomicFiles {
                items: the_only(items)?,
                interactions: Interactions::among(interactions)?,
            })),
            (false, false) => {
                let found = [items, interactions, of("csv")].concat();
                bail!(
                    "{}: expected {TITLES_FILE} and train*.csv, or NAME.item and NAME.inter; found {}",
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
        let is_training = |path: &PathBuf| {
            let name = file_name(path);
            name.starts_with("train") && name.ends_with(".csv")
        };
        let test = titles.with_file_name(TEST_FILE);
        Self {
            titles,
            test: files.contains(&test).then_some(test),
            training: files.into_iter().filter(is_training).collect(),
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

fn the_only(mut items: Vec<PathBuf>) -> Result<PathBuf> {
    ensure!(
        items.len() == 1,
        "there are several .item files, {}: leave the one to read in the folder",
        names(&items)
    );
    Ok(items.remove(0))
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
            DataFiles::Atomic(files) => match files.interactions {
                Interactions::Whole(file) => vec![files.items, file],
                Interactions::Parts(parts) => [&[files.items], &parts[..]].concat(),
            },
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
