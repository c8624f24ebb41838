//! Reads a catalogue and the rows of its users from a folder, in any of the formats.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use rand::seq::index;
use serde::{Deserialize, Serialize};

use crate::{
    console::positive,
    data::{
        catalogue::{Catalogue, Identifier, Interaction, Item},
        files::{DataFiles, Interactions, Items, PaperFiles, SplitFiles, TEST_FILE, find_index},
        interactions::read_interactions,
        json_format, paper_format, recbole_format,
        rows::read_rows,
        semantic_ids::SemanticIndex,
        summary::DataReport,
        text_table::Layout,
    },
    random::{Purpose, Random, random},
};

/// The default number of items in a history.
const HISTORY: usize = 10;

/// Options of the data.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataArguments {
    /// The folder of the catalogue and its users: RecBole's atomic files (NAME.item, and NAME.inter or the three
    /// benchmark files NAME.part1.inter to NAME.part3.inter), the paper's files (id2name4Rec.json, train*.csv, test.csv),
    /// or those of LC-Rec and MiniOneRec (NAME.index.json, NAME.item.json, and NAME.inter.json or train*.csv, valid*.csv
    /// and test*.csv)
    #[arg(long, value_name = "FOLDER")]
    pub data: PathBuf,

    /// The training rows, in the paper's format [default: the only train*.csv of the folder]
    #[arg(long, value_name = "FILE")]
    pub train: Option<PathBuf>,

    /// Validation rows, by which the best checkpoint is chosen: some of RecBole's validation rows, or held out of the
    /// paper's training rows. With 0 the last checkpoint is used
    #[arg(long, default_value_t = 0, value_name = "ROWS")]
    pub validation: usize,

    /// What the model answers with, and what stands for an item in a history [default: codes where the folder has a
    /// NAME.index.json, else title]
    #[arg(long, value_enum, value_name = "KIND")]
    #[serde(default)]
    pub identifier: Option<Identifier>,

    /// The text that names the items: a column of a .item file, or a field of a .item.json file [default: title or name,
    /// or the only column whose name ends in _title or _name]
    #[arg(long, value_name = "COLUMN")]
    pub title_column: Option<String>,

    /// The most items in a history, but for the paper's format: the user's last ones [default: 10]
    #[arg(long, value_name = "ITEMS", value_parser = positive)]
    pub history: Option<usize>,

    /// Refuse items without a title and rows with unknown items, instead of leaving them out
    #[arg(long)]
    #[serde(default)]
    pub strict: bool,

    /// Whether items of the paper's format are left out if their titles are blank. Runs of earlier versions have such
    /// items in their tries.
    #[arg(skip = true)]
    #[serde(default)]
    pub leave_out_blank: bool,
}

impl DataArguments {
    /// Builds the options of a folder with the defaults of all others.
    pub fn of(data: &Path) -> Self {
        Self {
            data: data.to_owned(),
            train: None,
            validation: 0,
            identifier: None,
            title_column: None,
            history: None,
            strict: false,
            leave_out_blank: true,
        }
    }

    /// Makes the paths absolute.
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

    /// Fills in what identifies the items, and the default length of histories where the format has one, for a run to
    /// keep. Options of another format are refused.
    pub fn with_defaults(self) -> Result<Self> {
        let folder = self.data.display();
        let history = match DataFiles::find(&self.data)? {
            DataFiles::Paper(_) => {
                let options = [
                    ("--history", self.history.is_some()),
                    ("--title-column", self.title_column.is_some()),
                ];
                if let Some((option, _)) = options.into_iter().find(|(_, given)| *given) {
                    bail!(
                        "{option} is for other formats: {folder} is in the paper's format, which says itself what \
                         histories and titles are"
                    );
                }
                None
            }
            DataFiles::Split(_) => {
                ensure!(
                    self.train.is_none(),
                    "--train is for the paper's format: {folder} holds files of another"
                );
                self.history.or(Some(HISTORY))
            }
        };
        let identifier = match find_index(&self.data)? {
            Some(_) => Identifier::Codes,
            None => Identifier::Title,
        };
        Ok(Self {
            history,
            identifier: self.identifier.or(Some(identifier)),
            ..self
        })
    }

    /// Returns what identifies the items. Runs of earlier versions do not say it.
    pub fn identifier(&self) -> Identifier {
        self.identifier.unwrap_or_default()
    }
}

/// Splits that a model can be evaluated on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Split {
    /// The rows to choose a checkpoint by.
    Validation,
    /// The rows to report on.
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

/// A catalogue with the rows of its users.
pub struct Dataset {
    /// The items.
    pub catalogue: Catalogue,
    /// Rows to train on.
    pub training: Vec<Interaction>,
    /// Rows to choose a checkpoint by.
    pub validation: Vec<Interaction>,
    /// Rows to report on.
    pub test: Vec<Interaction>,
    /// The files that were read, and what was left out.
    pub report: DataReport,
}

impl Dataset {
    /// Reads what the folder holds, and says on standard error what that is. The seed chooses what is held out.
    pub fn read(arguments: &DataArguments, seed: u64) -> Result<Self> {
        let dataset = match DataFiles::find(&arguments.data)? {
            DataFiles::Paper(files) => Self::read_paper(&files, arguments, seed),
            DataFiles::Split(files) => Self::read_split(&files, arguments),
        }?;
        dataset.report.print(&dataset.catalogue);
        Ok(dataset)
    }

    /// Returns the rows of a split. A split without rows is an error.
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

    /// Reads other rows in the paper's format or that of MiniOneRec, and says on standard error what they are.
    pub fn read_rows(&self, file: &Path, strict: bool) -> Result<Vec<Interaction>> {
        let mut report = DataReport::new(strict);
        let rows = read_csv(file, &self.catalogue, &mut report)?;
        report.print(&self.catalogue);
        Ok(rows)
    }

    fn read_paper(files: &PaperFiles, arguments: &DataArguments, seed: u64) -> Result<Self> {
        let mut report = DataReport::new(arguments.strict);
        let blank = arguments.leave_out_blank;
        let catalogue = paper_format::read_catalogue(&files.titles, blank, &mut report)?;
        let catalogue = identified(catalogue, arguments, &mut report)?;
        let file = files.training(arguments.train.as_deref())?;
        let training = read_csv(file, &catalogue, &mut report)?;
        ensure!(
            arguments.validation < training.len(),
            "--validation {} leaves nothing of the {} rows of {}",
            arguments.validation,
            training.len(),
            file.display()
        );
        let mut random = random(seed, Purpose::Validation);
        let (validation, training) = draw(&training, arguments.validation, &mut random);
        let test = match &files.test {
            Some(file) => read_csv(file, &catalogue, &mut report)?,
            None => Vec::new(),
        };
        Ok(Self {
            catalogue,
            training,
            validation,
            test,
            report,
        })
    }

    fn read_split(files: &SplitFiles, arguments: &DataArguments) -> Result<Self> {
        let mut report = DataReport::new(arguments.strict);
        let title_column = arguments.title_column.as_deref();
        let identifier = arguments.identifier();
        let catalogue = match &files.items {
            Items::Atomic(file) => recbole_format::read_items(file, title_column, &mut report)?,
            Items::Json(file) => {
                json_format::read_items(file, title_column, identifier, &mut report)?
            }
            Items::Index(file) => {
                ensure!(
                    !identifier.needs_title() && title_column.is_none(),
                    "expected NAME.item.json beside {}, which says what the titles are; without it there is only \
                     --identifier codes",
                    file.display()
                );
                let untitled = |id| Item {
                    id,
                    title: String::new(),
                };
                let ids = SemanticIndex::read(file)?.ids;
                Catalogue::new(ids.into_iter().map(untitled).collect())
                    .with_context(|| file.display().to_string())?
            }
        };
        let catalogue = identified(catalogue, arguments, &mut report)?;
        let history = arguments.history.unwrap_or(HISTORY);
        let interactions = &files.interactions;
        let [training, validation, test] =
            read_interactions(interactions, &catalogue, history, &mut report)?;
        if training.is_empty() {
            match interactions {
                Interactions::Whole(file) | Interactions::Users(file) => bail!(
                    "{}: expected a user with at least four items, of which some are left to train on",
                    file.display()
                ),
                Interactions::Parts([file, ..]) => bail!(
                    "{}: expected a user with at least two items, of which the last is to be trained on",
                    file.display()
                ),
                // Of which some are left, or reading them has failed.
                Interactions::Rows(_) => (),
            }
        }
        Ok(Self {
            catalogue,
            training,
            validation,
            test,
            report,
        })
    }
}

/// Reads rows of a CSV file with their whole histories.
fn read_csv(
    file: &Path,
    catalogue: &Catalogue,
    report: &mut DataReport,
) -> Result<Vec<Interaction>> {
    read_rows(file, Layout::CommaSeparated, usize::MAX, catalogue, report)
}

/// Gives the items of a catalogue their codes, where these are to identify them.
fn identified(
    catalogue: Catalogue,
    arguments: &DataArguments,
    report: &mut DataReport,
) -> Result<Catalogue> {
    let identifier = arguments.identifier();
    if identifier == Identifier::Title {
        return Ok(catalogue);
    }
    let file = find_index(&arguments.data)?.with_context(|| {
        format!(
            "--identifier asks for codes: expected a semantic-ID index NAME.index.json in {}",
            arguments.data.display()
        )
    })?;
    let index = SemanticIndex::read(&file)?;
    report.add_file(&file, &["ids", "codes"], index.ids.len());
    let codes = index.of_catalogue(&catalogue);
    let codes = codes.with_context(|| file.display().to_string())?;
    Ok(catalogue.identified_by(identifier, codes))
}

/// Draws at most `count` rows, and keeps their order.
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

/// Draws `count` rows, and returns them and all others, both in their order.
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
    use super::*;
    use crate::{data::files::TITLES_FILE, io::folder_of};

    fn paper() -> tempfile::TempDir {
        let rows: String = (0..20)
            .map(|user| format!("{user},\"[1, 2]\",9\n"))
            .collect();
        folder_of(&[
            (TITLES_FILE, r#"{"1": "A", "2": "B"}"#),
            ("train.csv", &format!("user_id,item_ids,timestamp\n{rows}")),
        ])
    }

    #[test]
    fn the_folder_decides_the_format() {
        let recbole = folder_of(&[
            ("x.item", "item_id:token\ttitle:token_seq\n1\tA\n2\tB\n"),
            (
                "x.inter",
                "user_id:token\titem_id:token\ttimestamp:float\nu\t1\t1\nu\t2\t2\nu\t1\t3\nu\t2\t4\n",
            ),
        ]);
        let dataset = Dataset::read(&DataArguments::of(recbole.path()), 1).unwrap();
        let sizes = [&dataset.training, &dataset.validation, &dataset.test].map(Vec::len);
        assert_eq!(sizes, [1, 1, 1]);
        let dataset = Dataset::read(&DataArguments::of(paper().path()), 1).unwrap();
        let sizes = [&dataset.training, &dataset.validation, &dataset.test].map(Vec::len);
        assert_eq!(sizes, [20, 0, 0]);
        let neither = folder_of(&[("x.item", "")]);
        let error = Dataset::read(&DataArguments::of(neither.path()), 1)
            .err()
            .unwrap();
        assert!(error.to_string().contains("found only"), "{error}");
    }

    #[test]
    fn held_out_rows_are_not_trained_on_and_depend_on_the_seed_alone() {
        let paper = paper();
        let arguments = DataArguments {
            validation: 6,
            ..DataArguments::of(paper.path())
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
