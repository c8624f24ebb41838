//! What the subcommands do.

pub mod arguments;
pub mod console;
mod demo;
mod evaluate;
mod inspect;
mod merge;
mod opened_run;
mod recommend;
mod report;
mod shapes;
mod train;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_trie::{MaskedSoftmaxLoss, Rows, TokenTrie};

use crate::{
    commands::arguments::{Arguments, Command, TokenizerArguments},
    data::{
        catalogue::{Catalogue, Interaction},
        prompt::Prompt,
        responses::{Example, Responses},
        tokenizer::TextTokenizer,
    },
    model::{Llama, LlamaConfig, device::DeviceChoice},
    train::progress::Progress,
};

/// Does what the command line asks for.
pub fn run(arguments: &Arguments) -> Result<()> {
    let device = || open_device(arguments.device);
    match &arguments.command {
        Command::Demo(arguments) => demo::demo(arguments, &device()?),
        Command::Train(arguments) => train::train(arguments, &device()?),
        Command::Resume(arguments) => train::resume(arguments, &device()?),
        Command::Inspect(arguments) => inspect::inspect(arguments),
        Command::Merge(arguments) => merge::merge(arguments),
        Command::Evaluate(arguments) => evaluate::evaluate(arguments, &device()?),
        Command::Recommend(arguments) => recommend::recommend(arguments, &device()?),
        Command::Report(arguments) => report::report(arguments),
        Command::Shapes(arguments) => shapes::shapes(arguments),
    }
}

/// The device to compute on. A GPU on which something of a training is missing is used only where it is named.
fn open_device(choice: DeviceChoice) -> Result<Device> {
    let device = choice.open()?;
    if choice == DeviceChoice::Auto
        && !device.is_cpu()
        && let Err(error) = train_a_little(&device)
    {
        eprintln!(
            "computing on the processor, because the GPU cannot do everything yet: {error:#}"
        );
        return Ok(Device::Cpu);
    }
    Ok(device)
}

/// Goes once through a tiny model and the loss, and back.
fn train_a_little(device: &Device) -> Result<()> {
    let config = LlamaConfig {
        vocab_size: 4,
        hidden_size: 16,
        intermediate_size: 16,
        ..LlamaConfig::default()
    };
    let model = Llama::random(config, 0, DType::F32, device)?;
    let trie = TokenTrie::new([(0, [1, 3]), (1, [2, 3])])?;
    let rows = Rows::from_shifted(&trie, &vec![vec![1i64, 3]])?;
    let hidden = model.hidden(&Tensor::new(&[[2u32, 1]], device)?)?;
    let mut loss = MaskedSoftmaxLoss::new(&trie, 1.0)?;
    let output = loss.forward((&hidden, model.head()), &rows)?;
    output.loss.backward()?;
    Ok(())
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

/// Says where a model reads more than it was made for.
fn warn_of_long_rows(lengths: impl Iterator<Item = usize>, config: &LlamaConfig) {
    let positions = config.max_position_embeddings;
    let (mut all, mut long, mut longest) = (0, 0, 0);
    for tokens in lengths {
        all += 1;
        long += usize::from(tokens > positions);
        longest = longest.max(tokens);
    }
    if long > 0 {
        eprintln!(
            "warning: {long} of {all} rows are longer than the {positions} tokens that the model was made for \
             (max_position_embeddings of its configuration), up to {longest}: what it answers to them may make no sense. \
             Shorten the histories, take --prompt titles, or take a model of a longer context"
        );
    }
}

/// The titles of a catalogue in tokens, out of the trie of a run where there is one. What the tokenizer does not tell
/// apart is said on standard error.
fn responses(
    catalogue: &Catalogue,
    tokenizer: &TextTokenizer,
    trie: Option<TokenTrie>,
) -> Result<Responses> {
    let responses = match trie {
        Some(trie) => Responses::of_run(trie, catalogue, tokenizer)?,
        None => Responses::new(catalogue, tokenizer)?,
    };
    let merged = responses.merged_titles(catalogue);
    if merged.count > 0 {
        eprintln!("warning: {merged}");
    }
    Ok(responses)
}

/// The tokenizer that was named, or one of the catalogue's own.
fn open_tokenizer(
    arguments: &TokenizerArguments,
    catalogue: &Catalogue,
    prompt: &Prompt,
) -> Result<TextTokenizer> {
    match &arguments.tokenizer {
        Some(file) => TextTokenizer::load(file, arguments.end_token.as_deref()),
        None => {
            ensure!(
                arguments.end_token.is_none(),
                "--end-token names a token of --tokenizer or --model: a tokenizer that is trained here has its own"
            );
            train_tokenizer(catalogue, prompt, arguments.vocabulary)
                .context("cannot train a tokenizer")
        }
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

/// How to read the numbers.
const ERRORS_NOTE: &str = "± is one standard error over the users. Item NLL is the mean −ln p of the item that came \
                           next, in nats; popularity's p is of its counts plus one, the item graph's of what followed \
                           the last item, backed off to popularity.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_can_do_all_that_a_training_needs() {
        train_a_little(&Device::Cpu).unwrap();
        assert!(open_device(DeviceChoice::Cpu).unwrap().is_cpu());
    }
}
