use anyhow::{Context, Result, ensure};

use super::examples;
use crate::{
    arguments::EvaluateArguments,
    checkpoint::Checkpoint,
    evaluate::Evaluator,
    paper_format::{TEST_FILE, find_training_file, read_catalogue, read_interactions, sample},
    popularity::popularity,
    random::{Purpose, random},
    report::{Comparison, Line},
    responses::Responses,
};

/// `msl evaluate`
pub fn evaluate(arguments: &EvaluateArguments) -> Result<()> {
    ensure!(arguments.batch_size > 0, "--batch-size is 0");
    let catalogue = read_catalogue(&arguments.data)?;
    let training_file = match &arguments.train {
        Some(file) => file.clone(),
        None => find_training_file(&arguments.data)?,
    };
    let training = read_interactions(&training_file, &catalogue)?;
    let test_file = arguments
        .test
        .clone()
        .unwrap_or_else(|| arguments.data.join(TEST_FILE));
    let test = read_interactions(&test_file, &catalogue)?;

    let Checkpoint {
        model,
        tokenizer,
        trie,
        record,
    } = Checkpoint::load(&arguments.run)?;
    let seed = record.training.seed;
    let test = sample(test, arguments.samples, &mut random(seed, Purpose::Sample));
    ensure!(!test.is_empty(), "--samples 0 leaves nothing to evaluate");
    let responses = Responses::new(&catalogue, &tokenizer)?;
    responses
        .check_same(&trie)
        .with_context(|| arguments.run.display().to_string())?;
    let examples = examples(&test, &catalogue, &record.prompt, &tokenizer, &responses)?;
    let evaluator = Evaluator {
        trie: &trie,
        beams: arguments.beams,
        batch_size: arguments.batch_size,
        temperature: arguments.temperature.unwrap_or(record.temperature.value),
    };
    let evaluation = evaluator.evaluate("evaluating", &model, &examples)?;
    let popularity = popularity(&training, &test, &responses)?;
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
