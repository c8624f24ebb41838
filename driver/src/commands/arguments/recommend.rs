//! Defines the options of `msl recommend`.

use std::path::PathBuf;

use clap::Args;

use super::{Moved, examples::RECOMMEND_EXAMPLES};
use crate::{
    console::{finite, positive},
    evaluate::search::SearchKind,
};

/// Options of `msl recommend`.
#[derive(Args)]
#[command(after_help = RECOMMEND_EXAMPLES)]
pub struct RecommendArguments {
    /// The folder of a run
    #[arg(value_name = "RUN")]
    pub run: PathBuf,

    /// The titles, item ids or codes that the user has chosen, oldest first
    #[arg(
        value_name = "TITLE",
        required_unless_present = "users",
        conflicts_with = "users"
    )]
    pub history: Vec<String>,

    /// Recommend to many users: a table (.jsonl, .csv or .tsv, perhaps with .gz or .zst after that, or .parquet) with a column
    /// history, the list of the ids of the items that a user has chosen, oldest first, and perhaps a column user_id
    #[arg(long, value_name = "FILE", requires = "output")]
    pub users: Option<PathBuf>,

    /// The file to write what the users of --users are recommended to, one JSON object per line
    #[arg(long, value_name = "FILE", requires = "users")]
    pub output: Option<PathBuf>,

    /// The column of --users with the list of the ids of the items that are not to be recommended to a user
    #[arg(long, value_name = "COLUMN", requires = "users")]
    pub exclude: Option<String>,

    /// Users of --users in a batch
    #[arg(long, default_value_t = 32, value_name = "USERS", value_parser = positive, requires = "users")]
    pub batch_size: usize,

    /// How many titles to recommend
    #[arg(long, default_value_t = 10, value_name = "TITLES", value_parser = positive)]
    pub top: usize,

    /// Exclude the items of the history; the probabilities of the others do not change
    #[arg(long)]
    pub unseen: bool,

    /// The search: beam may miss a better title, exact does not
    #[arg(long, value_enum, default_value = "beam")]
    pub search: SearchKind,

    /// Beams of the search, at least as many as titles to recommend [default: as many]
    #[arg(long, value_parser = positive)]
    pub beams: Option<usize>,

    /// The step of the checkpoint [default: the best on the validation rows, or the last if there were none]
    #[arg(long, value_name = "STEP")]
    pub checkpoint: Option<usize>,

    /// The new paths of the data and the model of the run, if they have moved.
    #[command(flatten)]
    pub moved: Moved,

    /// The temperature of the softmax [default: that of the training]
    #[arg(long, value_name = "τ", value_parser = finite)]
    pub temperature: Option<f64>,

    /// Print one JSON object instead of the table
    #[arg(long, conflicts_with = "users")]
    pub json: bool,
}
