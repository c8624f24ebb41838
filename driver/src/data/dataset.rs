//! Reads a catalogue and the rows of its users from a folder, in any of the formats.

use std::{fmt, path::Path};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rand::seq::index;

use crate::{
    data::{
        arguments::{DataArguments, HISTORY, SplitBy},
        catalogue::{Catalogue, Identifier, Interaction, Item},
        files::{DataFiles, Interactions, Items, PaperFiles, SplitFiles, TEST_FILE, find_index},
        interactions::{Read, Users, read_interactions},
        json_format, paper_format,
        rows::read_rows,
        semantic_ids::SemanticIndex,
        summary::DataReport,
        table::Layout,
        table_items::read_items,
    },
    random::{Purpose, Random, random},
};

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
        let dataset = match arguments.files()? {
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
            Items::Atomic(file) | Items::Table(file) => {
                let (layout, id) = match &files.items {
                    Items::Table(_) => (Layout::of(file)?, arguments.tables.item_column()),
                    _ => (Layout::Atomic, "item_id"),
                };
                read_items(file, layout, id, title_column, identifier, &mut report)?
            }
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
        let history = arguments.history.unwrap_or(HISTORY);
        let (interactions, tables) = (&files.interactions, &arguments.tables);
        ensure!(
            !matches!(interactions, Interactions::Users(_))
                || tables.split_by != Some(SplitBy::Time),
            "--split-by time needs the times of choices, which NAME.inter.json does not have"
        );
        let read = read_interactions(interactions, tables, &catalogue, history, &mut report)?;
        let (catalogue, [training, validation, test]) = match read {
            Read::Choices(mut users) => {
                let catalogue = match tables.k_core {
                    Some(least) => k_core(catalogue, &mut users, least)?,
                    None => catalogue,
                };
                users.split(tables.split_by.unwrap_or_default());
                (catalogue, users.rows(history))
            }
            split => {
                ensure!(
                    tables.k_core.is_none() && tables.split_by.is_none(),
                    "--k-core and --split-by are for choices that nobody has split: those of {} are",
                    arguments.data.display()
                );
                let rows = match split {
                    Read::Choices(users) | Read::Split(users) => users.rows(history),
                    Read::Rows(rows) => rows,
                };
                (catalogue, rows)
            }
        };
        let catalogue = identified(catalogue, arguments, &mut report)?;
        if training.is_empty() {
            match interactions {
                Interactions::Whole(file)
                | Interactions::Users(file)
                | Interactions::Table(file) => bail!(
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

/// Leaves out users and items with fewer than `least` choices.
fn k_core(catalogue: Catalogue, users: &mut Users, least: usize) -> Result<Catalogue> {
    let left = users.k_core(least, catalogue.items().len());
    let mut next = 0;
    let numbers: Vec<u64> = (left.iter())
        .map(|&left| {
            next += u64::from(left);
            next.saturating_sub(1)
        })
        .collect();
    users.renumber(|item| numbers[item as usize]);
    catalogue
        .keep(&left)
        .with_context(|| format!("--k-core {least} leaves nothing"))
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
    let tables = &arguments.tables;
    let (file, index) = match (tables.files(), &tables.codes_column) {
        (Some((items, _)), Some(codes)) => {
            let index = SemanticIndex::read_table(items, tables.item_column(), codes)?;
            (items.to_owned(), index)
        }
        _ => {
            let file = find_index(&arguments.data)?.with_context(|| {
                format!(
                    "--identifier asks for codes: expected a semantic-ID index NAME.index.json in {}, or --codes-column",
                    arguments.data.display()
                )
            })?;
            let index = SemanticIndex::read(&file)?;
            (file, index)
        }
    };
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
