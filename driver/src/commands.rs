//! What the subcommands do.

mod demo;
mod evaluate;
mod inspect;
mod merge;
mod opened_run;
mod recommend;
mod shapes;
mod train;

use anyhow::{Context, Result};

use crate::{
    arguments::{Command, TokenizerArguments},
    catalogue::{Catalogue, Interaction},
    popularity::popularity,
    progress::Progress,
    prompt::Prompt,
    ranking::Measures,
    report::Line,
    responses::{Example, Responses},
    tokenizer::TextTokenizer,
};

/// Does what the command line asks for.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Demo(arguments) => demo::demo(arguments),
        Command::Train(arguments) => train::train(arguments),
        Command::Resume(arguments) => train::resume(arguments),
        Command::Inspect(arguments) => inspect::inspect(arguments),
        Command::Merge(arguments) => merge::merge(arguments),
        Command::Evaluate(arguments) => evaluate::evaluate(arguments),
        Command::Recommend(arguments) => recommend::recommend(arguments),
        Command::Shapes(arguments) => shapes::shapes(arguments),
    }
}

/// Rows in tokens.
fn examples(
    interactions: &[Interaction],
    catalogue: &Catalogue,
    prompt: &Prompt,
    tokenizer: &TextTokenizer,
    responses: &Responses,
) -> Result<Vec<Example>> {
    if interactions.is_empty() {
        return Ok(Vec::new());
    }
    let mut progress = Progress::new("tokenizing", interactions.len());
    let examples = interactions
        .iter()
        .map(|interaction| {
            progress.advance(1);
            responses.example(interaction, catalogue, prompt, tokenizer)
        })
        .collect::<Result<_>>();
    progress.finish();
    examples
}

/// The tokenizer that was named, or one of the catalogue's own.
fn open_tokenizer(
    arguments: &TokenizerArguments,
    catalogue: &Catalogue,
    prompt: &Prompt,
) -> Result<TextTokenizer> {
    match &arguments.tokenizer {
        Some(file) => TextTokenizer::load(file, arguments.end_token.as_deref()),
        None => train_tokenizer(catalogue, prompt, arguments.vocabulary)
            .context("cannot train a tokenizer"),
    }
}

/// Trains a tokenizer on the titles as prompts and responses quote them, and on the words around them.
fn train_tokenizer(
    catalogue: &Catalogue,
    prompt: &Prompt,
    vocabulary: usize,
) -> Result<TextTokenizer> {
    let titles = catalogue.items().iter().map(|item| item.title.as_str());
    let texts: Vec<String> = titles
        .flat_map(|title| [prompt.text([title, title]), Prompt::response(title)])
        .collect();
    TextTokenizer::train(texts.iter().map(String::as_str), vocabulary)
}

/// The two ways to recommend that every other is to be measured by.
fn baselines(
    training: &[Interaction],
    test: &[Interaction],
    responses: &Responses,
) -> Result<Vec<Line>> {
    let titles = responses.trie().leaf_count();
    let popularity = popularity(training, test, responses)?;
    Ok(vec![
        Line::new("uniform", Measures::uniform(titles)),
        Line::new("popularity", Measures::of(&popularity, titles)),
    ])
}

/// How to read the numbers.
const ERRORS_NOTE: &str = "± is one standard error over the users. Item NLL is the mean −ln p of the item that came \
                           next, in nats; popularity's p is of its counts plus one.";
