//! The command line.

mod examples;
mod run_settings;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::{
    data::dataset::{DataArguments, Split},
    evaluate::search::{SearchKind, SearchSettings},
    model::{device::DeviceChoice, precision::Precision},
    run::{
        folder::RunFolder,
        settings::{finite, parse_eta},
    },
};

pub use run_settings::{PromptArguments, RunSettings, TokenizerArguments};

use examples::{
    DEMO_EXAMPLES, EVALUATE_EXAMPLES, EXAMPLES, INSPECT_EXAMPLES, RECOMMEND_EXAMPLES,
    REPORT_EXAMPLES, RESUME_EXAMPLES, TRAIN_EXAMPLES,
};

/// Tune and evaluate a language model as a recommender with the masked softmax loss
#[derive(Parser)]
#[command(name = "msl", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Arguments {
    /// Where to compute: auto (the first GPU that can be used, else the processor), cpu or cuda:N
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Watch a small language model become a recommender: a synthetic catalogue, four losses, one table
    Demo(DemoArguments),
    /// Train a model on a catalogue and its users: adapters of a pretrained one, or a small one from scratch
    Train(Box<TrainArguments>),
    /// Go on with a training that was interrupted, to the same result bit for bit
    Resume(ResumeArguments),
    /// Look at a catalogue as the losses will see it, and hear which scope of ats is defined for it
    Inspect(InspectArguments),
    /// Add adapters to the weights of their model, and write the sum as a Hugging Face folder
    Merge(MergeArguments),
    /// Evaluate a trained model on the test rows of a catalogue
    Evaluate(EvaluateArguments),
    /// Recommend to one user, whose history is typed here
    Recommend(RecommendArguments),
    /// Lay runs beside each other in one HTML page: how they were trained, how well they recommend, what they were told
    Report(ReportArguments),
    /// Write the token sets and rows of a batch of a real catalogue, for benchmarks to run on anywhere
    Shapes(ShapesArguments),
}

/// Options of `msl demo`.
#[derive(Args)]
#[command(after_help = DEMO_EXAMPLES)]
pub struct DemoArguments {
    /// The seed of the catalogue, its users, the models and the order of training
    #[arg(long, default_value_t = 42)]
    pub seed: u64,

    /// Rows to tune on
    #[arg(long, default_value_t = 3_200)]
    pub training_rows: usize,

    /// Rows to evaluate on
    #[arg(long, default_value_t = 1_000)]
    pub test_rows: usize,

    /// Passes over the titles alone, with the plain language-model loss, before anything is tuned
    #[arg(long, default_value_t = 20)]
    pub pretraining_epochs: usize,

    /// Passes over the rows to tune on
    #[arg(long, default_value_t = 5)]
    pub epochs: usize,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
}

/// Options of `msl train`.
#[derive(Args)]
#[command(after_help = TRAIN_EXAMPLES)]
pub struct TrainArguments {
    /// The folder to write the run to
    #[arg(long, value_name = "FOLDER")]
    pub output: PathBuf,

    /// Replace the output folder if it is there: that of a run which nobody trains, or of a merged model
    #[arg(long)]
    pub overwrite: bool,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,

    /// All that decides what comes out.
    #[command(flatten)]
    pub run: RunSettings,
}

/// Options of `msl inspect`.
#[derive(Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub struct InspectArguments {
    /// The folder of the catalogue and its users: RecBole's atomic files or the paper's files
    #[arg(value_name = "CATALOGUE")]
    pub catalogue: PathBuf,

    /// The column of a .item file that names the items [default: the one called title or name, or the only one that ends
    /// so]
    #[arg(long, value_name = "COLUMN")]
    pub title_column: Option<String>,

    /// The training rows, in the paper's format [default: the only train*.csv of the folder]
    #[arg(long, value_name = "FILE")]
    pub train: Option<PathBuf>,

    /// Refuse items without a title, and rows that name an item which the catalogue does not have, instead of leaving
    /// them out
    #[arg(long)]
    pub strict: bool,

    /// What cuts texts into tokens.
    #[command(flatten)]
    pub tokenizer: TokenizerArguments,

    /// The pretrained language model whose tokenizer it is: a Hugging Face folder or a GGUF file
    #[arg(
        long = "model",
        value_name = "FOLDER|FILE.gguf",
        conflicts_with_all = ["tokenizer", "vocabulary"]
    )]
    pub pretrained: Option<PathBuf>,

    /// η: the probability that ats gives the average target
    #[arg(long, default_value_t = 0.25, value_name = "η", value_parser = parse_eta)]
    pub eta: f64,

    /// Print one JSON object instead of the tables
    #[arg(long)]
    pub json: bool,

    /// The words around a history.
    #[command(flatten, next_help_heading = "Prompt")]
    pub prompt: PromptArguments,
}

impl InspectArguments {
    /// Where the rows come from.
    pub fn data(&self) -> DataArguments {
        DataArguments {
            train: self.train.clone(),
            title_column: self.title_column.clone(),
            strict: self.strict,
            ..DataArguments::of(&self.catalogue)
        }
    }
}

/// These options say where the data and the model of a run are now, if they have moved since it was made.
#[derive(Args)]
pub struct Moved {
    /// The folder of the catalogue and its users [default: that of training]
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,

    /// The pretrained model that the adapters belong to [default: that of training]
    #[arg(long, value_name = "FOLDER|FILE.gguf")]
    pub model: Option<PathBuf>,
}

impl Moved {
    /// A run with what it was made with where it is now.
    pub fn apply(&self, run: RunFolder) -> Result<RunFolder> {
        run.moved(self.data.as_deref(), self.model.as_deref())
    }
}

/// Options of `msl resume`.
#[derive(Args)]
#[command(after_help = RESUME_EXAMPLES)]
pub struct ResumeArguments {
    /// The folder of a run that was interrupted
    #[arg(value_name = "RUN")]
    pub run: PathBuf,

    /// The data and the model of the run, where they have moved.
    #[command(flatten)]
    pub moved: Moved,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
}

/// Options of `msl merge`.
#[derive(Args)]
pub struct MergeArguments {
    /// The folder of a run, or one with adapter_model.safetensors and adapter_config.json, as PEFT writes it
    #[arg(value_name = "RUN|ADAPTER")]
    pub adapter: PathBuf,

    /// The model that the adapters belong to [default: that of the run's training, or the one that adapter_config.json
    /// names]
    #[arg(long, value_name = "FOLDER|FILE.gguf")]
    pub model: Option<PathBuf>,

    /// The token that ends the model's texts [default: the model's own]
    #[arg(long, value_name = "TOKEN")]
    pub end_token: Option<String>,

    /// The type to write the weights in
    #[arg(
        long = "dtype",
        value_enum,
        default_value = "stored",
        value_name = "TYPE"
    )]
    pub precision: Precision,

    /// The folder to write the model to
    #[arg(long, value_name = "FOLDER")]
    pub output: PathBuf,

    /// Replace the output folder if it is there: that of a run which nobody trains, or of a merged model
    #[arg(long)]
    pub overwrite: bool,
}

/// Options of `msl evaluate`.
#[derive(Args)]
#[command(after_help = EVALUATE_EXAMPLES)]
pub struct EvaluateArguments {
    /// The folder of a run
    #[arg(value_name = "RUN")]
    pub run: PathBuf,

    /// The step of the checkpoint [default: the best on the validation rows, or the last where there were none]
    #[arg(long, value_name = "STEP")]
    pub checkpoint: Option<usize>,

    /// The data and the model of the run, where they have moved.
    #[command(flatten)]
    pub moved: Moved,

    /// Which rows to evaluate on
    #[arg(long, value_enum, default_value = "test")]
    pub split: Split,

    /// Evaluate on the rows of this file instead, in the paper's format
    #[arg(long, value_name = "FILE", conflicts_with = "split")]
    pub test: Option<PathBuf>,

    /// Use this many of them, chosen by the seed of training [default: all]
    #[arg(long, value_name = "ROWS")]
    pub samples: Option<usize>,

    /// The file to write each user's rank and item NLL to [default: ranks.csv in the folder of the run, with
    /// the table in evaluation.json beside it, where msl report finds them; those of an evaluation that was decoded in
    /// another way are kept as ranks-1.csv and evaluation-1.json]
    #[arg(long, value_name = "FILE")]
    pub ranks: Option<PathBuf>,

    /// A file to write what each user is recommended to, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub lists: Option<PathBuf>,

    /// The search.
    #[command(flatten)]
    pub search: SearchSettings,

    /// Users evaluated side by side
    #[arg(long, default_value_t = 32)]
    pub batch_size: usize,

    /// The temperature of the softmax [default: that of training]
    #[arg(long, value_name = "τ", value_parser = finite)]
    pub temperature: Option<f64>,

    /// The type that the model is held and computed in [default: that of training]
    #[arg(long = "dtype", value_enum, value_name = "TYPE")]
    pub precision: Option<Precision>,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
}

/// Options of `msl recommend`.
#[derive(Args)]
#[command(after_help = RECOMMEND_EXAMPLES)]
pub struct RecommendArguments {
    /// The folder of a run
    #[arg(value_name = "RUN")]
    pub run: PathBuf,

    /// The titles that a user has chosen, or their items' ids, oldest first
    #[arg(value_name = "TITLE", required = true)]
    pub history: Vec<String>,

    /// How many titles to recommend
    #[arg(long, default_value_t = 10, value_name = "TITLES")]
    pub top: usize,

    /// Leave out what the user has chosen already; the others' probabilities stay as they are
    #[arg(long)]
    pub unseen: bool,

    /// How the catalogue is searched: exact proves that nothing better was missed
    #[arg(long, value_enum, default_value = "beam")]
    pub search: SearchKind,

    /// Beams of the search [default: as many as titles are to be recommended]
    #[arg(long)]
    pub beams: Option<usize>,

    /// The step of the checkpoint [default: the best on the validation rows, or the last where there were none]
    #[arg(long, value_name = "STEP")]
    pub checkpoint: Option<usize>,

    /// The data and the model of the run, where they have moved.
    #[command(flatten)]
    pub moved: Moved,

    /// The temperature of the softmax [default: that of training]
    #[arg(long, value_name = "τ", value_parser = finite)]
    pub temperature: Option<f64>,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
}

/// Options of `msl report`.
#[derive(Args)]
#[command(after_help = REPORT_EXAMPLES)]
pub struct ReportArguments {
    /// The folders of runs; the first is the one that others are compared with, user by user
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,

    /// The page to write
    #[arg(long, default_value = "report.html", value_name = "FILE")]
    pub output: PathBuf,
}

/// Options of `msl shapes`.
#[derive(Args)]
pub struct ShapesArguments {
    /// A tokenizer.json
    #[arg(long, value_name = "FILE")]
    pub tokenizer: PathBuf,

    /// The token that ends a response [default: looked for among the usual ones]
    #[arg(long, value_name = "TOKEN")]
    pub end_token: Option<String>,

    /// Responses in the batch: those of the first training rows
    #[arg(long, default_value_t = 128)]
    pub responses: usize,

    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,

    /// Where the rows come from.
    #[command(flatten, next_help_heading = "Data")]
    pub data: DataArguments,
}
