use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    data::{
        dataset::DataArguments,
        prompt::{Prompt, PromptStyle},
    },
    model::{LoraSettings, precision::Precision},
    run::settings::{CheckpointSettings, LossSettings, ModelSettings, TrainingSettings},
};

/// All that decides what comes out of a training. A run keeps it, to be gone on with.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSettings {
    /// Where the rows come from.
    #[command(flatten, next_help_heading = "Data")]
    pub data: DataArguments,

    /// Use this many training rows, chosen by the seed [default: all]
    #[arg(long, value_name = "ROWS", help_heading = "Data")]
    pub samples: Option<usize>,

    /// What cuts texts into tokens.
    #[command(flatten, next_help_heading = "Model")]
    pub tokenizer: TokenizerArguments,

    /// A pretrained language model to tune by adapters: a Hugging Face folder (config.json, *.safetensors,
    /// tokenizer.json) or a GGUF file. Llama 2 and 3, TinyLlama, SmolLM2, Qwen 2, 2.5 and 3 are known [default: a model
    /// of the sizes below is trained from scratch]
    #[arg(
        long = "model",
        value_name = "FOLDER|FILE.gguf",
        help_heading = "Model",
        conflicts_with_all = ["tokenizer", "vocabulary", "hidden", "intermediate", "layers", "heads", "key_value_heads"]
    )]
    pub pretrained: Option<PathBuf>,

    /// The type that a pretrained model is held and computed in
    #[arg(
        long = "dtype",
        value_enum,
        default_value = "f32",
        value_name = "TYPE",
        help_heading = "Model",
        requires = "pretrained"
    )]
    #[serde(default)]
    pub precision: Precision,

    /// The adapters of a pretrained model.
    #[command(flatten, next_help_heading = "Adapters of a pretrained model")]
    pub adapter: LoraSettings,

    /// The sizes of the model.
    #[command(flatten, next_help_heading = "Model from scratch")]
    pub model: ModelSettings,

    /// The words around a history.
    #[command(flatten, next_help_heading = "Prompt")]
    pub prompt: PromptArguments,

    /// The loss and its temperature.
    #[command(flatten, next_help_heading = "Loss")]
    pub loss: LossSettings,

    /// How the training goes.
    #[command(flatten, next_help_heading = "Training")]
    pub training: TrainingSettings,

    /// What is kept of it.
    #[command(flatten, next_help_heading = "Checkpoints")]
    pub checkpoints: CheckpointSettings,
}

impl RunSettings {
    /// Refuses what would be asked for in vain.
    pub fn check(&self) -> Result<()> {
        // clap requires no option that conflicts with one that is given, as --model does with the sizes.
        let plain = self.adapter == LoraSettings::default() && self.precision == Precision::F32;
        ensure!(
            self.pretrained.is_some() || plain,
            "--lora-… and --dtype are for a pretrained model: name it with --model"
        );
        self.loss.check()?;
        self.prompt.check()?;
        ensure!(
            self.loss.loss.is_masked() || !self.training.read_unary_tail,
            "--read-unary-tail is for losses that the trie masks: with --loss lml the end of a response is always read"
        );
        let checkpoints = &self.checkpoints;
        for (option, value) in [
            ("--save-every", checkpoints.save_every),
            ("--patience", checkpoints.patience),
        ] {
            ensure!(value != Some(0), "{option} is 0, expected at least 1");
        }
        ensure!(
            checkpoints.patience.is_none() || self.data.validation > 0,
            "--patience looks at validation rows: say how many with --validation"
        );
        Ok(())
    }

    /// Returns the paths of everything that the run reads.
    pub fn inputs(&self) -> Vec<&Path> {
        let named = [
            &self.data.train,
            &self.tokenizer.tokenizer,
            &self.pretrained,
        ];
        let named = named.into_iter().flatten().map(PathBuf::as_path);
        named.chain([self.data.data.as_path()]).collect()
    }

    /// Fails where what a run keeps of these would not be read back as they are.
    pub fn check_written(&self) -> Result<()> {
        let written = serde_json::to_string(self)
            .context("a run could not keep these settings in its training.json")?;
        ensure!(
            serde_json::from_str::<Self>(&written).ok().as_ref() == Some(self),
            "a run could not keep these settings: its training.json would be read back as others"
        );
        Ok(())
    }
}

/// What cuts texts into tokens.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerArguments {
    /// A tokenizer.json [default: byte-pair merges trained on the titles and the prompt]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,

    /// The token that ends a response [default: looked for among the usual ones]
    #[arg(long, value_name = "TOKEN")]
    pub end_token: Option<String>,

    /// The largest vocabulary of a tokenizer that is trained here
    #[arg(
        long,
        default_value_t = 4_096,
        value_name = "TOKENS",
        conflicts_with = "tokenizer"
    )]
    pub vocabulary: usize,

    /// Whether prompts begin with what the tokenizer puts before a text. Those of runs from before it was asked did not.
    #[arg(skip)]
    #[serde(default)]
    pub begins: bool,
}

const NOUN: &str = "book";
const VERB: &str = "read";

/// How to speak of the items.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptArguments {
    /// What an item is called in --prompt alpaca
    #[arg(long, default_value = NOUN)]
    pub noun: String,

    /// What users do with an item in --prompt alpaca, in the past participle: read, watched, played
    #[arg(long, default_value = VERB)]
    pub verb: String,

    /// How a history is worded
    #[arg(long, value_enum, default_value = "alpaca")]
    pub prompt: PromptStyle,
}

impl PromptArguments {
    /// Refuses words that the wording does not have.
    pub fn check(&self) -> Result<()> {
        let plain = self.noun == NOUN && self.verb == VERB;
        ensure!(
            self.prompt == PromptStyle::Alpaca || plain,
            "--noun and --verb are words of --prompt alpaca: --prompt titles has none"
        );
        Ok(())
    }

    /// The wording.
    pub fn prompt(&self) -> Prompt {
        Prompt {
            style: self.prompt,
            noun: self.noun.clone(),
            verb: self.verb.clone(),
        }
    }
}
