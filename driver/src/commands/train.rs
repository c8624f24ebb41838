use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use serde::Serialize;

use super::{examples, train_tokenizer};
use crate::{
    arguments::TrainArguments,
    catalogue::Catalogue,
    checkpoint::{self, AdaptedRecord, METRICS_FILE, TrainingRecord},
    dataset::{Dataset, sample},
    metrics::MetricsFile,
    model::Llama,
    output::OutputFolder,
    pretrained::Pretrained,
    prompt::Prompt,
    random::{Purpose, random},
    report::{print_json, table},
    responses::Responses,
    tokenizer::TextTokenizer,
    train::{Trained, Trainer},
};

/// `msl train`
pub fn train(arguments: &TrainArguments) -> Result<()> {
    OutputFolder::check(&arguments.output, arguments.overwrite)?;
    let seed = arguments.training.seed;
    let Dataset {
        catalogue,
        training,
        ..
    } = Dataset::read(&arguments.data, seed)?;
    let interactions = sample(
        &training,
        arguments.samples,
        &mut random(seed, Purpose::Sample),
    );
    ensure!(
        !interactions.is_empty(),
        "--samples 0 leaves nothing to train on"
    );

    let prompt = arguments.prompt.prompt();
    let (model, tokenizer, adapted) = match &arguments.pretrained {
        Some(base) => adapted_model(arguments, base)?,
        None => new_model(arguments, &catalogue, &prompt)?,
    };
    let responses = Responses::new(&catalogue, &tokenizer)?;
    let mut trainer = Trainer::new(
        &model,
        responses.trie(),
        &arguments.loss,
        &arguments.training,
    )?;
    let examples = examples(&interactions, &catalogue, &prompt, &tokenizer, &responses)?;

    let output = OutputFolder::create(&arguments.output, arguments.overwrite)?;
    let mut metrics = MetricsFile::create(&output.path().join(METRICS_FILE))?;
    let trained = trainer.train("training", &examples, |step| metrics.write(step))?;
    let record = TrainingRecord {
        data: arguments.data.absolute()?,
        prompt,
        end_token: tokenizer.end_text(),
        loss: arguments.loss.clone(),
        training: arguments.training.clone(),
        model: arguments.model.clone(),
        adapted,
        temperature: trainer.loss().temperature().state(),
    };
    checkpoint::save(output.path(), &model, &tokenizer, responses.trie(), &record)?;
    output.finish()?;
    report(arguments, &trained)
}

/// A model to train from scratch.
fn new_model(
    arguments: &TrainArguments,
    catalogue: &Catalogue,
    prompt: &Prompt,
) -> Result<(Llama, TextTokenizer, Option<AdaptedRecord>)> {
    let tokenizer = tokenizer(arguments, catalogue, prompt)?;
    let config = arguments
        .model
        .config(tokenizer.vocabulary(), tokenizer.end());
    let model = Llama::random(config, arguments.training.seed, DType::F32)?;
    Ok((model, tokenizer, None))
}

/// A pretrained model, to train adapters beside it.
fn adapted_model(
    arguments: &TrainArguments,
    base: &Path,
) -> Result<(Llama, TextTokenizer, Option<AdaptedRecord>)> {
    let adapter = &arguments.adapter;
    adapter.check()?;
    let pretrained = Pretrained::open(base, arguments.end_token.as_deref())?;
    let (mut model, tokenizer) = pretrained.read()?;
    model.adapt(adapter, arguments.training.seed)?;
    let adapted = AdaptedRecord {
        base: base.canonicalize()?,
        adapter: adapter.clone(),
    };
    Ok((model, tokenizer, Some(adapted)))
}

fn tokenizer(
    arguments: &TrainArguments,
    catalogue: &Catalogue,
    prompt: &Prompt,
) -> Result<TextTokenizer> {
    match &arguments.tokenizer {
        Some(file) => TextTokenizer::load(file, arguments.end_token.as_deref()),
        None => train_tokenizer(catalogue, prompt, arguments.vocabulary)
            .context("cannot train a tokenizer"),
    }
}

fn report(arguments: &TrainArguments, trained: &Trained) -> Result<()> {
    #[derive(Serialize)]
    struct Report<'a> {
        command: &'static str,
        output: &'a std::path::Path,
        #[serde(flatten)]
        trained: &'a Trained,
    }
    if arguments.json {
        return print_json(&Report {
            command: "train",
            output: &arguments.output,
            trained,
        });
    }
    let mut table = table(&[
        "run",
        "steps",
        "first loss",
        "last loss",
        "temperature",
        "seconds",
        "rows/s",
    ]);
    table.add_row([
        arguments.output.display().to_string(),
        trained.steps.to_string(),
        format!("{:.4}", trained.first_loss),
        format!("{:.4}", trained.last_loss),
        format!("{:.3}", trained.temperature),
        format!("{:.1}", trained.seconds),
        format!("{:.0}", trained.rows_per_second),
    ]);
    println!("{table}");
    Ok(())
}
