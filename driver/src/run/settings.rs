//! Defines the options that decide the result of a training, which a run keeps in its `training.json`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::{
    console::positive,
    data::{
        arguments::DataArguments,
        catalogue::Identifier,
        prompt::{Prompt, PromptStyle},
        tokenizer::TokenizerArguments,
    },
    model::{LoraSettings, ModelSettings, precision::Precision},
    train::{loss_settings::LossSettings, settings::TrainingSettings},
};

/// The options that decide the result of a training.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSettings {
    /// Options of the data.
    #[command(flatten, next_help_heading = "Data")]
    pub data: DataArguments,

    /// Use this many training rows, chosen by the seed [default: all]
    #[arg(long, value_name = "ROWS", help_heading = "Data")]
    pub samples: Option<usize>,

    /// Options of the tokenizer.
    #[command(flatten, next_help_heading = "Model")]
    pub tokenizer: TokenizerArguments,

    /// A pretrained language model to tune by adapters: a Hugging Face folder (config.json, *.safetensors,
    /// tokenizer.json) or a GGUF file. Llama 2 and 3, TinyLlama, SmolLM2, Qwen 2, 2.5 and 3 are known. Codes that are no
    /// tokens of it are added [default: a model of the sizes below is trained from scratch]
    #[arg(
        long = "model",
        value_name = "FOLDER|FILE.gguf",
        help_heading = "Model",
        conflicts_with_all = [
            "tokenizer", "vocabulary", "hidden", "intermediate", "layers", "heads", "key_value_heads",
            "pretraining_epochs"
        ]
    )]
    pub pretrained: Option<PathBuf>,

    /// The type of the weights of a pretrained model, in which it is computed
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

    /// Options of the adapters of a pretrained model.
    #[command(flatten, next_help_heading = "Adapters of a pretrained model")]
    pub adapter: LoraSettings,

    /// The first values of the rows of new tokens, the codes that a pretrained model does not have: for each code the mean
    /// row of the titles of its items (where none has a title, of all tokens), or the mean of all tokens
    /// [default: titles]
    #[arg(
        long,
        value_enum,
        value_name = "ROWS",
        help_heading = "Adapters of a pretrained model",
        requires = "pretrained"
    )]
    #[serde(default)]
    pub new_tokens: Option<NewTokens>,

    /// Options of the sizes of a model from scratch.
    #[command(flatten, next_help_heading = "Model from scratch")]
    pub model: ModelSettings,

    /// Epochs of pretraining on the titles alone, each behind a prompt without a history, with the plain language-model
    /// loss and the options of the training [default: none]
    #[arg(
        long,
        value_name = "EPOCHS",
        help_heading = "Model from scratch",
        value_parser = positive
    )]
    #[serde(default)]
    pub pretraining_epochs: Option<usize>,

    /// Options of the prompt.
    #[command(flatten, next_help_heading = "Prompt")]
    pub prompt: Prompt,

    /// Options of the loss and its temperature.
    #[command(flatten, next_help_heading = "Loss")]
    pub loss: LossSettings,

    /// Options of the optimizer and its batches.
    #[command(flatten, next_help_heading = "Training")]
    pub training: TrainingSettings,

    /// Options of the checkpoints.
    #[command(flatten, next_help_heading = "Checkpoints")]
    pub checkpoints: CheckpointSettings,
}

impl RunSettings {
    /// Refuses options that would have no effect.
    pub fn check(&self) -> Result<()> {
        // clap requires no option that conflicts with one that is given, as --model does with the sizes.
        let plain = self.adapter == LoraSettings::default() && self.precision == Precision::F32;
        ensure!(
            self.pretrained.is_some() || plain,
            "--lora-… and --dtype are for a pretrained model: name it with --model"
        );
        self.loss.check()?;
        ensure!(
            self.loss.loss.is_masked() || !self.training.read_unary_tail,
            "--read-unary-tail is for losses that the trie masks: with --loss lml the end of a response is always read"
        );
        ensure!(
            self.checkpoints.patience.is_none() || self.data.validation > 0,
            "--patience needs validation rows: give their number with --validation"
        );
        Ok(())
    }

    /// Fills in the defaults that depend on the data and on other options, for a run to keep.
    pub fn with_defaults(self) -> Result<Self> {
        let data = self.data.absolute()?.with_defaults()?;
        let identifier = data.identifier();
        // Without a tokenizer of others, a model of codes needs no other tokens.
        let scratch = self.pretrained.is_none() && self.tokenizer.tokenizer.is_none();
        let prompt = self
            .prompt
            .with_defaults(scratch && identifier == Identifier::Codes);
        prompt.check(identifier)?;
        ensure!(
            self.pretraining_epochs.is_none() || prompt.style() != PromptStyle::Codes,
            "--pretraining-epochs reads items behind a prompt without a history, which is empty with --prompt codes: take \
             --prompt titles or alpaca"
        );
        let added = self.pretrained.is_some() && identifier != Identifier::Title;
        ensure!(
            added || self.new_tokens.is_none(),
            "--new-tokens is for codes that a pretrained model does not have: name one with --model, and take --identifier \
             codes or codes-title"
        );
        Ok(Self {
            new_tokens: added.then(|| self.new_tokens.unwrap_or_default()),
            data,
            prompt,
            adapter: self.adapter.with_separate_targets(),
            loss: self.loss.with_defaults(),
            ..self
        })
    }

    /// Returns the paths of everything that the run reads.
    pub fn inputs(&self) -> Vec<&Path> {
        let named = [
            &self.data.train,
            &self.data.tables.items,
            &self.data.tables.interactions,
            &self.tokenizer.tokenizer,
            &self.pretrained,
        ];
        let named = named.into_iter().flatten().map(PathBuf::as_path);
        named.chain([self.data.data.as_path()]).collect()
    }

    /// Fails where the file of these settings would not be read back as the same settings.
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

/// The first values of the rows of new tokens, before training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NewTokens {
    /// The mean over the titles of a code's items of the mean row of their tokens.
    #[default]
    Titles,
    /// The mean row of all tokens.
    Mean,
}

/// Options of the checkpoints.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSettings {
    /// Steps between two checkpoints, with an evaluation of the validation rows at each [default: an epoch]
    #[arg(long, value_name = "STEPS", value_parser = positive)]
    pub save_every: Option<usize>,

    /// Early stopping: end the training after this many evaluations of the validation rows without a better one
    /// [default: never]
    #[arg(long, value_name = "EVALUATIONS", value_parser = positive)]
    pub patience: Option<usize>,
}
