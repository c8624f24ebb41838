//! Defines the command line.

mod examples;
mod recommend;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::{
    console::{finite, positive},
    data::{
        arguments::{DataArguments, THIS_FOLDER, TableArguments},
        catalogue::Identifier,
        dataset::Split,
        prompt::Prompt,
        tokenizer::TokenizerArguments,
    },
    evaluate::search::SearchSettings,
    model::{device::DeviceChoice, precision::Precision},
    run::{folder::RunFolder, settings::RunSettings},
    train::loss_settings::parse_eta,
};

pub use recommend::RecommendArguments;

use examples::{
    DEMO_EXAMPLES, EVALUATE_EXAMPLES, EXAMPLES, EXPORT_EXAMPLES, INSPECT_EXAMPLES, REPORT_EXAMPLES,
    RESUME_EXAMPLES, TRAIN_EXAMPLES,
};

/// Tune and evaluate a language model as a recommender with the masked softmax loss
#[derive(Parser)]
#[command(name = "msl", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Arguments {
    /// The device: auto (the first usable GPU, else the processor), cpu or cuda:N
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,

    /// The subcommands.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Train a small language model on a synthetic catalogue under four losses, and compare them in one table
    Demo(DemoArguments),
    /// Train a model on a catalogue and its users: adapters of a pretrained model, or a small model from scratch
    Train(Box<TrainArguments>),
    /// Resume a training that was interrupted, to a bit-identical result
    Resume(ResumeArguments),
    /// Print statistics of the trie of a catalogue, and for which --scope the adaptive temperature (ats) is defined
    Inspect(InspectArguments),
    /// Merge adapters into the weights of their model, and write a Hugging Face folder
    Merge(MergeArguments),
    /// Write which tokens may follow each prefix of a run's responses, for a model server such as vLLM
    Export(ExportArguments),
    /// Evaluate a trained model on the test rows of a catalogue
    Evaluate(EvaluateArguments),
    /// Recommend titles to one user, whose history is given on the command line, or to many users of a table (--users)
    Recommend(RecommendArguments),
    /// Compare runs in one HTML page: their training, their evaluations and their settings
    Report(ReportArguments),
}

/// Options of `msl demo`.
#[derive(Args)]
#[command(after_help = DEMO_EXAMPLES)]
pub struct DemoArguments {
    /// The seed of the catalogue, its users, the models and the order of training
    #[arg(long, default_value_t = 42)]
    pub seed: u64,

    /// Training rows
    #[arg(long, default_value_t = 3_200, value_parser = positive)]
    pub training_rows: usize,

    /// Test rows
    #[arg(long, default_value_t = 1_000, value_parser = positive)]
    pub test_rows: usize,

    /// Epochs of pretraining on the titles alone, with the plain language-model loss
    #[arg(long, default_value_t = 20, value_parser = positive)]
    pub pretraining_epochs: usize,

    /// Epochs of tuning on the training rows
    #[arg(long, default_value_t = 5, value_parser = positive)]
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

    /// Replace the output folder if it is a merged model, or a run that is not being trained
    #[arg(long)]
    pub overwrite: bool,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,

    /// The options that decide the result.
    #[command(flatten)]
    pub run: RunSettings,
}

/// Options of `msl inspect`.
#[derive(Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub struct InspectArguments {
    /// The folder of the catalogue and its users, in any format that msl train reads
    #[arg(
        value_name = "CATALOGUE",
        required_unless_present = "items",
        default_value = THIS_FOLDER,
        hide_default_value = true
    )]
    pub catalogue: PathBuf,

    /// Options of tables of items and interactions.
    #[command(flatten)]
    pub tables: TableArguments,

    /// What the model answers with, and what stands for an item in a history [default: codes where the folder has a
    /// NAME.index.json, else title]
    #[arg(long, value_enum, value_name = "KIND")]
    pub identifier: Option<Identifier>,

    /// The text that names the items: a column of a .item file, or a field of a .item.json file [default: title or name,
    /// or the only column whose name ends in _title or _name]
    #[arg(long, value_name = "COLUMN")]
    pub title_column: Option<String>,

    /// The training rows, in the paper's format [default: the only train*.csv of the folder]
    #[arg(long, value_name = "FILE")]
    pub train: Option<PathBuf>,

    /// Refuse items without a title and rows with unknown items, instead of leaving them out
    #[arg(long)]
    pub strict: bool,

    /// Options of the tokenizer.
    #[command(flatten)]
    pub tokenizer: TokenizerArguments,

    /// The pretrained language model whose tokenizer is used: a Hugging Face folder or a GGUF file
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

    /// Options of the prompt.
    #[command(flatten, next_help_heading = "Prompt")]
    pub prompt: Prompt,
}

impl InspectArguments {
    /// Returns the options of the data.
    pub fn data(&self) -> DataArguments {
        let folder = match self.tables.folder() {
            Some(folder) if self.catalogue == Path::new(THIS_FOLDER) => folder,
            _ => &self.catalogue,
        };
        DataArguments {
            train: self.train.clone(),
            tables: self.tables.clone(),
            identifier: self.identifier,
            title_column: self.title_column.clone(),
            strict: self.strict,
            ..DataArguments::of(folder)
        }
    }
}

/// Options of where the data and the model of a run are now, if they have moved.
#[derive(Args)]
pub struct Moved {
    /// The folder of the catalogue and its users [default: that of the training]
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,

    /// The pretrained model that the adapters belong to [default: that of training]
    #[arg(long, value_name = "FOLDER|FILE.gguf")]
    pub model: Option<PathBuf>,
}

impl Moved {
    /// Applies the new paths to a run.
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

    /// The new paths of the data and the model of the run, if they have moved.
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

    /// Replace the output folder if it is a merged model, or a run that is not being trained
    #[arg(long)]
    pub overwrite: bool,
}

/// Options of `msl export`.
#[derive(Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub struct ExportArguments {
    /// The folder of a run
    #[arg(value_name = "RUN")]
    pub run: PathBuf,

    /// The file to write, one JSON object per line: a prefix of tokens, and the tokens that are allowed after it or, where
    /// a response ends, the ids of its items
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,

    /// The folder of the catalogue and its users [default: that of the training]
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
}

/// Options of `msl evaluate`.
#[derive(Args)]
#[command(after_help = EVALUATE_EXAMPLES)]
pub struct EvaluateArguments {
    /// The folder of a run
    #[arg(value_name = "RUN")]
    pub run: PathBuf,

    /// The step of the checkpoint [default: the best on the validation rows, or the last if there were none]
    #[arg(long, value_name = "STEP")]
    pub checkpoint: Option<usize>,

    /// The new paths of the data and the model of the run, if they have moved.
    #[command(flatten)]
    pub moved: Moved,

    /// The rows to evaluate on
    #[arg(long, value_enum, default_value = "test")]
    pub split: Split,

    /// Evaluate on the rows of this file instead, in the paper's format
    #[arg(long, value_name = "FILE", conflicts_with = "split")]
    pub test: Option<PathBuf>,

    /// Evaluate on this many of the rows, chosen by the seed of the training [default: all]
    #[arg(long, value_name = "ROWS")]
    pub samples: Option<usize>,

    /// The file to write each user's rank and item NLL to [default: ranks.csv in the folder of the run, with the table
    /// in evaluation.json, which msl report reads. Those of an earlier evaluation that was decoded otherwise are kept
    /// as ranks-1.csv and evaluation-1.json]
    #[arg(long, value_name = "FILE")]
    pub ranks: Option<PathBuf>,

    /// The file to write each user's recommendations to, one JSON object per line
    #[arg(long, value_name = "FILE")]
    pub lists: Option<PathBuf>,

    /// Options of the search.
    #[command(flatten)]
    pub search: SearchSettings,

    /// Users in a batch
    #[arg(long, default_value_t = 32, value_name = "USERS", value_parser = positive)]
    pub batch_size: usize,

    /// The temperature of the softmax [default: that of the training]
    #[arg(long, value_name = "τ", value_parser = finite)]
    pub temperature: Option<f64>,

    /// The type that the model is held and computed in [default: that of training]
    #[arg(long = "dtype", value_enum, value_name = "TYPE")]
    pub precision: Option<Precision>,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
}

/// Options of `msl report`.
#[derive(Args)]
#[command(after_help = REPORT_EXAMPLES)]
pub struct ReportArguments {
    /// The folders of the runs; the others are compared with the first, user by user
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,

    /// The page to write
    #[arg(long, default_value = "report.html", value_name = "FILE")]
    pub output: PathBuf,
}
