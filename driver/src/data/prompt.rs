//! Words prompts and responses. Training and inference share one text.

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::data::catalogue::Identifier;

const NOUN: &str = "book";
const VERB: &str = "read";

/// Wordings of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PromptStyle {
    /// The instruction format of the paper.
    #[default]
    Alpaca,
    /// The titles alone, which take fewer tokens and are enough for a model from scratch.
    Titles,
    /// The codes alone, one after another, which needs --identifier codes.
    Codes,
}

/// Options of the wording of prompts and responses.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// What an item is called in --prompt alpaca
    #[arg(long, default_value = NOUN)]
    pub noun: String,

    /// What users do with an item in --prompt alpaca, in the past participle: read, watched, played
    #[arg(long, default_value = VERB)]
    pub verb: String,

    /// The wording of a prompt [default: alpaca, or codes for a model from scratch whose items are identified by codes]
    #[arg(id = "prompt", long = "prompt", value_enum, value_name = "STYLE")]
    #[serde(rename = "prompt")]
    pub style: Option<PromptStyle>,
}

impl Prompt {
    /// Builds the wording of the options' default noun and verb.
    pub fn new(style: PromptStyle) -> Self {
        Self {
            style: Some(style),
            noun: NOUN.into(),
            verb: VERB.into(),
        }
    }

    /// Fills in the default wording for a run to keep. Where all tokens are `only_codes`, a prompt can hold nothing else.
    pub fn with_defaults(self, only_codes: bool) -> Self {
        let default = match only_codes {
            true => PromptStyle::Codes,
            false => PromptStyle::Alpaca,
        };
        Self {
            style: self.style.or(Some(default)),
            ..self
        }
    }

    /// Returns the wording.
    pub fn style(&self) -> PromptStyle {
        self.style.unwrap_or_default()
    }

    /// Refuses a noun or a verb where the wording has neither, and codes alone where items are identified otherwise.
    pub fn check(&self, identifier: Identifier) -> Result<()> {
        let plain = Self::new(self.style());
        ensure!(
            self.style() == PromptStyle::Alpaca
                || (&self.noun, &self.verb) == (&plain.noun, &plain.verb),
            "--noun and --verb are words of --prompt alpaca: the other prompts have none"
        );
        ensure!(
            self.style() != PromptStyle::Codes || identifier == Identifier::Codes,
            "--prompt codes is for items that are identified by codes alone: take --identifier codes, or another --prompt"
        );
        Ok(())
    }

    /// Returns the prompt for a history of items, named as the catalogue names them.
    pub fn text(&self, history: impl IntoIterator<Item = String>) -> String {
        let history: Vec<String> = history.into_iter().collect();
        let list = history.join(", ");
        let (noun, verb) = (&self.noun, &self.verb);
        match self.style() {
            PromptStyle::Alpaca => format!(
                "Below is an instruction that describes a task, paired with an input that provides further context. \
                 Write a response that appropriately completes the request. \n\n\
                 ### Instruction:\n\
                 Given a list of {noun}s the user has {verb} before, \
                 please recommend a new {noun} that the user likes to the user.\n\n\
                 ### Input:\n\
                 The user has {verb} the following {noun}s before: {list}\n\n\
                 ### Response:\n"
            ),
            PromptStyle::Titles => format!("{list}\n"),
            PromptStyle::Codes => history.concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::catalogue::quoted;

    #[test]
    fn the_prompt_is_worded_as_the_paper_words_it() {
        let prompt = Prompt::new(PromptStyle::Alpaca);
        assert_eq!(
            prompt.text(["Emma", "Persuasion"].map(quoted)),
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request. \n\n### Instruction:\nGiven a list of books the user has read before, please recommend a new book that the user likes to the user.\n\n### Input:\nThe user has read the following books before: \"Emma\", \"Persuasion\"\n\n### Response:\n"
        );
    }
}
