//! The words around a history. Training and inference share one text: a model is asked what it was taught.

use std::fmt::Write;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How a history is worded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PromptStyle {
    /// The instruction format of the paper.
    #[default]
    Alpaca,
    /// The quoted titles alone: a model trained from scratch needs no instruction, and the tokens are saved.
    Titles,
}

/// The wording of prompts and responses for one kind of item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// How a history is worded.
    pub style: PromptStyle,
    /// What an item is called: book, movie, game.
    pub noun: String,
    /// What a user did with it: read, watched, played.
    pub verb: String,
}

impl Prompt {
    /// Everything that the model reads before it answers.
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

    /// What the model is taught to answer; the end token follows it.
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
        let prompt = Prompt {
            style: PromptStyle::Alpaca,
            noun: "book".into(),
            verb: "read".into(),
        };
        assert_eq!(
            prompt.text(["Emma", "Persuasion"]),
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request. \n\n### Instruction:\nGiven a list of books the user has read before, please recommend a new book that the user likes to the user.\n\n### Input:\nThe user has read the following books before: \"Emma\", \"Persuasion\"\n\n### Response:\n"
        );
        assert_eq!(Prompt::response("Emma"), "\"Emma\"");
    }
}
