//! A catalogue and its users, in whichever format a folder holds them.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use rand::seq::index;
use serde::{Deserialize, Serialize};

use crate::{
    catalogue::{Catalogue, Interaction},
    paper_format::{self, TEST_FILE, TITLES_FILE},
    random::{Purpose, Random, random},
    recbole_format::{self, LeaveOneOut},
};

/// Where the rows come from.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataArguments {
    /// The folder of the catalogue and its users: RecBole's atomic files (NAME.item, NAME.inter) or the paper's files
    /// (id2name4Rec.json, train*.csv, test.csv)
    #[arg(long, value_name = "FOLDER")]
    pub data: PathBuf,

    /// The training rows, in the paper's format [default: the largest train*.csv of the folder]
    #[arg(long, value_name = "FILE")]
    pub train: Option<PathBuf>,

    /// Rows to choose the best checkpoint by: some of RecBole's validation rows, or held out of the paper's training
    /// rows. With 0 the last checkpoint is the one that counts
    #[arg(long, default_value_t = 0, value_name = "ROWS")]
    pub validation: usize,

    /// The column of a .item file that names the items [default: the one called title or name, or ending so]
    #[arg(long, value_name = "COLUMN")]
    pub title_column: Option<String>,

    /// How many of a user's last items a history made of a .inter file holds
    #[arg(long, default_value_t = 10, value_name = "ITEMS")]
    pub history: usize,
}

impl DataArguments {
    /// The same files, by names that mean the same from everywhere.
    pub fn absolute(&self) -> Result<Self> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).with_context(|| format!("cannot locate {}", path.display()))
        };
        Ok(Self {
            data: absolute(&self.data)?,
            train: self.train.as_ref().map(absolute).transpose()?,
            ..self.clone()
        })
    }
}

/// Rows that are not trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Split {
    /// Those to choose a checkpoint by.
    Validation,
    /// Those to report on.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

/// Everything that is known of a catalogue's users.
pub struct Dataset {
    /// The items.
    pub catalogue: Catalogue,
    /// Rows to train on.
    pub training: Vec<Interaction>,
    /// Rows to choose a checkpoint by.
    pub validation: Vec<Interaction>,
    /// Rows to report on.
    pub test: Vec<Interaction>,
}

impl Dataset {
    /// Reads what the folder holds. The seed chooses what is held out.
    pub fn read(arguments: &DataArguments, seed: u64) -> Result<Self> {
        ensure!(arguments.history > 0, "--history is 0");
        let folder = &arguments.data;
        if folder.join(TITLES_FILE).exists() {
            return Self::read_paper(arguments, seed);
        }
        let files = ["item", "inter"].map(|extension| recbole_format::find_file(folder, extension));
        let [items, interactions] = files;
        match (items?, interactions?) {
            (Some(items), Some(interactions)) => {
                Self::read_recbole(&items, &interactions, arguments)
            }
            (items, interactions) => bail!(
                "{}: expected {TITLES_FILE} and train*.csv, or NAME.item and NAME.inter; found {}",
                folder.display(),
                match items.or(interactions) {
                    Some(file) => format!("only {}", file.display()),
                    None => "none of them".into(),
                }
            ),
        }
    }

    /// The rows of a split; none is an error.
    pub fn split(&self, split: Split) -> Result<&[Interaction]> {
        let (rows, expected) = match split {
            Split::Validation => (&self.validation, "a training with --validation ROWS"),
            Split::Test => (&self.test, TEST_FILE),
        };
        ensure!(
            !rows.is_empty(),
            "there are no rows to evaluate on: expected {expected}"
        );
        Ok(rows)
    }

    fn read_paper(arguments: &DataArguments, seed: u64) -> Result<Self> {
        let folder = &arguments.data;
        let catalogue = paper_format::read_catalogue(folder)?;
        let file = match &arguments.train {
            Some(file) => file.clone(),
            None => paper_format::find_training_file(folder)?,
        };
        let training = paper_format::read_interactions(&file, &catalogue)?;
        ensure!(
            arguments.validation < training.len(),
            "--validation {} leaves nothing of the {} rows of {}",
            arguments.validation,
            training.len(),
            file.display()
        );
        let mut random = random(seed, Purpose::Validation);
        let (validation, training) = draw(&training, arguments.validation, &mut random);
        let test = folder.join(TEST_FILE);
        let test = match test.exists() {
            true => paper_format::read_interactions(&test, &catalogue)?,
            false => Vec::new(),
        };
        Ok(Self {
            catalogue,
            training,
            validation,
            test,
        })
    }

    fn read_recbole(items: &Path, interactions: &Path, arguments: &DataArguments) -> Result<Self> {
        ensure!(
            arguments.train.is_none(),
            "--train is for the paper's format, and {} is RecBole's",
            items.display()
        );
        let items = recbole_format::read_items(items, arguments.title_column.as_deref())?;
        let LeaveOneOut {
            training,
            validation,
            test,
        } = recbole_format::read_interactions(interactions, &items, arguments.history)?;
        ensure!(
            !training.is_empty(),
            "{}: expected a user with at least four items, of which some are left to train on",
            interactions.display()
        );
        Ok(Self {
            catalogue: items.catalogue,
            training,
            validation,
            test,
        })
    }
}

/// At most `count` rows, chosen by the seed and left in their order.
pub fn sample(
    interactions: &[Interaction],
    count: Option<usize>,
    random: &mut Random,
) -> Vec<Interaction> {
    match count {
        Some(count) if count < interactions.len() => draw(interactions, count, random).0,
        _ => interactions.to_vec(),
    }
}

/// `count` rows, and all others, both in their order.
fn draw(
    interactions: &[Interaction],
    count: usize,
    random: &mut Random,
) -> (Vec<Interaction>, Vec<Interaction>) {
    let mut drawn = vec![false; interactions.len()];
    for row in index::sample(random, interactions.len(), count) {
        drawn[row] = true;
    }
    let mut drawn = drawn.into_iter();
    interactions
        .iter()
        .cloned()
        .partition(|_| drawn.next().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn arguments(folder: &Path) -> DataArguments {
        DataArguments {
            data: folder.to_owned(),
            train: None,
            validation: 0,
            title_column: None,
            history: 10,
        }
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn paper() -> tempfile::TempDir {
        let rows: String = (0..20)
            .map(|user| format!("{user},\"[1, 2]\",9\n"))
            .collect();
        folder(&[
            (TITLES_FILE, r#"{"1": "A", "2": "B"}"#),
            ("train.csv", &format!("user_id,item_ids,timestamp\n{rows}")),
        ])
    }

    #[test]
    fn the_folder_decides_the_format() {
        let recbole = folder(&[
            ("x.item", "item_id:token\ttitle:token_seq\n1\tA\n2\tB\n"),
            (
                "x.inter",
                "user_id:token\titem_id:token\ttimestamp:float\nu\t1\t1\nu\t2\t2\nu\t1\t3\nu\t2\t4\n",
            ),
        ]);
        let dataset = Dataset::read(&arguments(recbole.path()), 1).unwrap();
        let sizes = [&dataset.training, &dataset.validation, &dataset.test].map(Vec::len);
        assert_eq!(sizes, [1, 1, 1]);
        let dataset = Dataset::read(&arguments(paper().path()), 1).unwrap();
        let sizes = [&dataset.training, &dataset.validation, &dataset.test].map(Vec::len);
        assert_eq!(sizes, [20, 0, 0]);
        let neither = folder(&[("x.item", "")]);
        let error = Dataset::read(&arguments(neither.path()), 1).err().unwrap();
        assert!(error.to_string().contains("found only"), "{error}");
    }

    #[test]
    fn held_out_rows_are_not_trained_on_and_depend_on_the_seed_alone() {
        let paper = paper();
        let arguments = DataArguments {
            validation: 6,
            ..arguments(paper.path())
        };
        let users = |rows: &[Interaction]| -> Vec<String> {
            rows.iter().map(|row| row.user.clone()).collect()
        };
        let [first, again, other] = [1, 1, 2].map(|seed| Dataset::read(&arguments, seed).unwrap());
        assert_eq!((first.validation.len(), first.training.len()), (6, 14));
        let held_out = users(&first.validation);
        assert!(
            users(&first.training)
                .iter()
                .all(|user| !held_out.contains(user))
        );
        assert_eq!(held_out, users(&again.validation));
        assert_ne!(held_out, users(&other.validation));
        let all = DataArguments {
            validation: 20,
            ..arguments
        };
        assert!(Dataset::read(&all, 1).is_err());
    }
}
