//! Words prompts and responses. Training and inference share one text.

use std::fmt::Write;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

const NOUN: &str = "book";
const VERB: &str = "read";

/// Wordings of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PromptStyle {
    /// The instruction format of the paper.
    #[default]
    Alpaca,
    /// The quoted titles alone, which take fewer tokens and are enough for a model from scratch.
    Titles,
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

    /// The wording of a prompt
    #[arg(
        id = "prompt",
        long = "prompt",
        value_enum,
        default_value = "alpaca",
        value_name = "STYLE"
    )]
    #[serde(rename = "prompt")]
    pub style: PromptStyle,
}

impl Prompt {
    /// Builds the wording of the options' default noun and verb.
    pub fn new(style: PromptStyle) -> Self {
        Self {
            style,
            noun: NOUN.into(),
            verb: VERB.into(),
        }
    }

    /// Refuses a noun or a verb where the wording has neither.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.style == PromptStyle::Alpaca || *self == Self::new(self.style),
            "--noun and --verb are words of --prompt alpaca: --prompt titles has none"
        );
        Ok(())
    }

    /// Returns the prompt for a history of titles.
    pub fn text<'a>(&self, history: impl IntoIterator<Item = &'a str>) -> String {
        let titles = quoted_list(history);
        let (noun, verb) = (&self.noun, &self.verb);
        match self.style {
            PromptStyle::Alpaca => format!(
                "Below is an instruction that describes a task, paired with an input that provides further context. \
                 Write a response that appropriately completes the request. \n\n\
                 ### Instruction:\n\
                 Given a list of {noun}s the user has {verb} before, \
                 please recommend a new {noun} that the user likes to the user.\n\n\
                 ### Input:\n\
                 The user has {verb} the following {noun}s before: {titles}\n\n\
                 ### Response:\n"
            ),
            PromptStyle::Titles => format!("{titles}\n"),
        }
    }

    /// Returns the response that names a title. The end token follows it.
    pub fn response(title: &str) -> String {
        format!("\"{title}\"")
    }
}

fn quoted_list<'a>(titles: impl IntoIterator<Item = &'a str>) -> String {
    let mut list = String::new();
    for title in titles {
        let separator = if list.is_empty() { "" } else { ", " };
        // Writing into a string cannot fail.
        let _ = write!(list, "{separator}\"{title}\"");
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_worded_as_the_paper_words_it() {
        let prompt = Prompt::new(PromptStyle::Alpaca);
        assert_eq!(
            prompt.text(["Emma", "Persuasion"]),
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request. \n\n### Instruction:\nGiven a list of books the user has read before, please recommend a new book that the user likes to the user.\n\n### Input:\nThe user has read the following books before: \"Emma\", \"Persuasion\"\n\n### Response:\n"
        );
        assert_eq!(Prompt::response("Emma"), "\"Emma\"");
    }
}
