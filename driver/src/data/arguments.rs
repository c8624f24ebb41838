//! Defines the options of the data: the folder or the tables of a catalogue and its users, and how they are read.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::{
    console::positive,
    data::{
        catalogue::Identifier,
        files::{DataFiles, Interactions, Items, SplitFiles, find_index},
    },
    io::parent,
};

/// Stands for the folder of the items where tables are named and no folder is.
pub const THIS_FOLDER: &str = ".";

/// The default number of items in a history.
pub const HISTORY: usize = 10;

/// Options of the data.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataArguments {
    /// The folder of the catalogue and its users: RecBole's atomic files (NAME.item, and NAME.inter or the three
    /// benchmark files NAME.part1.inter to NAME.part3.inter), the paper's files (id2name4Rec.json, train*.csv, test.csv),
    /// or those of LC-Rec and MiniOneRec (NAME.index.json, NAME.item.json, and NAME.inter.json or train*.csv, valid*.csv
    /// and test*.csv)
    #[arg(
        long,
        value_name = "FOLDER",
        required_unless_present = "items",
        default_value = THIS_FOLDER,
        hide_default_value = true
    )]
    pub data: PathBuf,

    /// Options of tables of items and interactions.
    #[command(flatten)]
    #[serde(default, skip_serializing_if = "TableArguments::is_default")]
    pub tables: TableArguments,

    /// The training rows, in the paper's format [default: the only train*.csv of the folder]
    #[arg(long, value_name = "FILE")]
    pub train: Option<PathBuf>,

    /// The number of validation rows, by which the best checkpoint is chosen. They are drawn from the data's validation
    /// rows or, in the paper's format, held out of the training rows. With 0 the last checkpoint is used
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

    /// The largest number of items in a history, which are the user's last ones; not for the paper's format, whose rows
    /// have histories of their own [default: 10]
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
            tables: TableArguments::default(),
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
        // Without --data, it is the folder of the items.
        let folder = match self.tables.folder() {
            Some(folder) if self.data == Path::new(THIS_FOLDER) => folder,
            _ => &self.data,
        };
        Ok(Self {
            data: absolute(&folder.to_owned())?,
            train: self.train.as_ref().map(absolute).transpose()?,
            tables: TableArguments {
                items: self.tables.items.as_ref().map(absolute).transpose()?,
                interactions: self
                    .tables
                    .interactions
                    .as_ref()
                    .map(absolute)
                    .transpose()?,
                ..self.tables.clone()
            },
            ..self.clone()
        })
    }

    /// Returns the files that are named, or those of the folder.
    pub fn files(&self) -> Result<DataFiles> {
        match self.tables.files() {
            None => DataFiles::find(&self.data),
            Some((items, interactions)) => Ok(DataFiles::Split(SplitFiles {
                items: Items::Table(items.to_owned()),
                interactions: Interactions::Table(interactions.to_owned()),
            })),
        }
    }

    /// Fills in what identifies the items, and the default length of histories where the format has one, for a run to
    /// keep. Options of another format are refused.
    pub fn with_defaults(self) -> Result<Self> {
        let folder = self.data.display();
        let history = match self.files()? {
            DataFiles::Paper(_) => {
                let options = [
                    ("--history", self.history.is_some()),
                    ("--title-column", self.title_column.is_some()),
                    ("--k-core", self.tables.k_core.is_some()),
                    ("--split-by", self.tables.split_by.is_some()),
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
        let identifier = match &self.tables.codes_column {
            None if find_index(&self.data)?.is_none() => Identifier::Title,
            _ => Identifier::Codes,
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

/// Options of tables of items and interactions.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TableArguments {
    /// A table of the items: .csv, .tsv or .jsonl, perhaps with .gz or .zst after that, or .parquet
    #[arg(long, value_name = "FILE", requires = "interactions")]
    pub items: Option<PathBuf>,

    /// A table of who chose what and when, one choice a row, in the same formats
    #[arg(long, value_name = "FILE", requires = "items")]
    pub interactions: Option<PathBuf>,

    /// The column of the item ids, in both tables [default: item_id]
    #[arg(long, value_name = "COLUMN", requires = "items")]
    pub item_column: Option<String>,

    /// The column of the users [default: user_id]
    #[arg(long, value_name = "COLUMN", requires = "items")]
    pub user_column: Option<String>,

    /// The column of the times, which are numbers [default: timestamp if there is one, else rows are in their order]
    #[arg(long, value_name = "COLUMN", requires = "items")]
    pub time_column: Option<String>,

    /// The column of the codes of the items: a list such as ["<a_12>", "<b_7>"], or a text such as <a_12><b_7>
    #[arg(long, value_name = "COLUMN", requires = "items")]
    pub codes_column: Option<String>,

    /// Leave out users and items with fewer choices than this, until all that are left have as many
    #[arg(long, value_name = "CHOICES", value_parser = positive)]
    pub k_core: Option<usize>,

    /// Which choices of users are for validation and the test [default: leave-one-out]
    #[arg(long, value_enum, value_name = "SPLIT")]
    pub split_by: Option<SplitBy>,
}

/// Ways to split the choices of users into those to train on, for validation and for the test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SplitBy {
    /// Each user's last item is for the test, and the one before for validation.
    #[default]
    LeaveOneOut,
    /// The last tenth of all choices by time is for the test, and the tenth before for validation.
    Time,
}

impl TableArguments {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the files of the items and the interactions, if they are named.
    pub fn files(&self) -> Option<(&Path, &Path)> {
        Some((self.items.as_deref()?, self.interactions.as_deref()?))
    }

    /// Returns the folder of the items.
    pub fn folder(&self) -> Option<&Path> {
        Some(parent(self.items.as_deref()?))
    }

    /// Returns the column of the item ids.
    pub fn item_column(&self) -> &str {
        self.item_column.as_deref().unwrap_or("item_id")
    }
}
