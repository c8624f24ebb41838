use anyhow::{Context, Result, ensure};

use super::examples;
use crate::{
    arguments::EvaluateArguments,
    checkpoint::Checkpoint,
    dataset::{Dataset, sample},
    evaluate::Evaluator,
    paper_format,
    popularity::popularity,
    random::{Purpose, random},
    report::{Comparison, Line},
    responses::Responses,
    run_folder::RunFolder,
};

/// `msl evaluate`
pub fn evaluate(arguments: &EvaluateArguments) -> Result<()> {
    ensure!(arguments.batch_size > 0, "--batch-size is 0");
    let run = RunFolder::open(&arguments.run)?;
    let Checkpoint {
        model,
        tokenizer,
        state,
    } = match arguments.checkpoint {
        Some(step) => run.load(step)?,
        None => run.best()?,
    };
    let (settings, trie) = (run.settings(), run.trie()?);
    let seed = settings.training.seed;
    let mut data = settings.data.clone();
    if let Some(folder) = &arguments.data {
        data.data = folder.clone();
        data.train = None;
    }
    let dataset = Dataset::read(&data, seed)?;
    let catalogue = &dataset.catalogue;
    let rows = match &arguments.test {
        Some(file) => &paper_format::read_interactions(file, catalogue)?,
        None => dataset.split(arguments.split)?,
    };
    let test = sample(rows, arguments.samples, &mut random(seed, Purpose::Sample));
    ensure!(!test.is_empty(), "--samples 0 leaves nothing to evaluate");
    let responses = Responses::new(catalogue, &tokenizer)?;
    responses
        .check_same(&trie)
        .with_context(|| arguments.run.display().to_string())?;
    let examples = examples(
        &test,
        catalogue,
        &settings.prompt.prompt(),
        &tokenizer,
        &responses,
    )?;
    let evaluator = Evaluator {
        trie: &trie,
        beams: arguments.beams,
        batch_size: arguments.batch_size,
        temperature: arguments.temperature.unwrap_or(state.temperature.value),
    };
    let evaluation = evaluator.evaluate("evaluating", &model, &examples)?;
    let popularity = popularity(&dataset.training, &test, &responses)?;
    Comparison {
        command: "evaluate",
        seed,
        users: test.len(),
        rows: vec![
            Line::popularity(popularity),
            Line {
                name: arguments.run.display().to_string(),
                ranking: evaluation.ranking,
                item_nll: evaluation.item_nll,
                temperature: Some(evaluator.temperature),
                seconds: None,
                rows_per_second: None,
            },
        ],
        notes: vec![
            format!("{} users, {} beams.", test.len(), arguments.beams),
            super::nll_note(&responses),
        ],
    }
    .print(arguments.json)
}
