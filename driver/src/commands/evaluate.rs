use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Device;

use super::{ERRORS_NOTE, baselines, examples, opened_run::OpenedRun};
use crate::{
    arguments::EvaluateArguments,
    catalogue::Interaction,
    checkpoint::Checkpoint,
    dataset::sample,
    evaluate::Evaluator,
    paper_format,
    random::{Purpose, random},
    ranking::{Measures, UserResult},
    report::{Comparison, Line},
};

const RANKS_FILE: &str = "ranks.csv";

/// `msl evaluate`
pub fn evaluate(arguments: &EvaluateArguments, device: &Device) -> Result<()> {
    ensure!(arguments.batch_size > 0, "--batch-size is 0");
    let run = OpenedRun::new(
        &arguments.run,
        arguments.checkpoint,
        arguments.data.as_deref(),
        device,
    )?;
    let (settings, dataset, responses) = (run.folder.settings(), &run.dataset, &run.responses);
    let Checkpoint {
        model,
        tokenizer,
        state,
    } = &run.checkpoint;
    let catalogue = &dataset.catalogue;
    let seed = settings.training.seed;
    let rows = match &arguments.test {
        Some(file) => &paper_format::read_interactions(file, catalogue)?,
        None => dataset.split(arguments.split)?,
    };
    let test = sample(rows, arguments.samples, &mut random(seed, Purpose::Sample));
    ensure!(!test.is_empty(), "--samples 0 leaves nothing to evaluate");
    let examples = examples(
        &test,
        catalogue,
        &settings.prompt.prompt(),
        tokenizer,
        responses,
    )?;
    let evaluator = Evaluator {
        trie: &run.trie,
        beams: arguments.beams,
        batch_size: arguments.batch_size,
        temperature: run.temperature(arguments.temperature),
    };
    let evaluation = evaluator.evaluate("evaluating", model, &examples)?;
    let ranks = match &arguments.ranks {
        Some(file) => file.clone(),
        None => arguments.run.join(RANKS_FILE),
    };
    write_ranks(&ranks, &test, &evaluation.users)?;
    let mut rows = baselines(&dataset.training, &test, responses)?;
    let name = format!("{}, step {}", arguments.run.display(), state.step);
    rows.push(Line {
        temperature: Some(evaluator.temperature),
        users_per_second: Some(evaluation.users_per_second),
        ..Line::new(name, Measures::of(&evaluation.users, arguments.beams))
    });
    Comparison {
        command: "evaluate",
        seed,
        users: test.len(),
        rows,
        notes: vec![
            format!(
                "{} users, {} beams; each user's rank is in {}.",
                test.len(),
                arguments.beams,
                ranks.display()
            ),
            ERRORS_NOTE.into(),
        ],
    }
    .print(arguments.json)
}

/// Writes a CSV file of one line for each user.
fn write_ranks(path: &Path, rows: &[Interaction], users: &[UserResult]) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = csv::Writer::from_path(path).with_context(cannot)?;
    let rank = |user: &UserResult| user.place.map(|place| (place + 1).to_string());
    let header = ["user_id", "item_id", "rank", "item_nll"];
    let lines = rows.iter().zip(users).map(|(row, user)| {
        [
            row.user.clone(),
            row.target.to_string(),
            rank(user).unwrap_or_default(),
            user.item_nll.to_string(),
        ]
    });
    file.write_record(header)
        .and_then(|()| {
            lines
                .into_iter()
                .try_for_each(|line| file.write_record(line))
        })
        .with_context(cannot)?;
    file.flush().with_context(cannot)
}
