use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use candle_trie::Found;
use serde::Serialize;

use super::{ERRORS_NOTE, baselines, examples, opened_run::OpenedRun, warn_of_long_rows};
use crate::{
    arguments::EvaluateArguments,
    catalogue::{Catalogue, Interaction},
    checkpoint::Checkpoint,
    comparison::{Comparison, EVALUATION_FILE, Line},
    dataset::sample,
    evaluate::{Evaluation, Evaluator},
    json::write_json,
    precision::Place,
    random::{Purpose, random},
    ranking::Measures,
    ranks::{RANKS_FILE, write_ranks},
    responses::Example,
    search::{SearchKind, SearchSettings},
};

/// `msl evaluate`
pub fn evaluate(arguments: &EvaluateArguments, device: &Device) -> Result<()> {
    ensure!(arguments.batch_size > 0, "--batch-size is 0");
    arguments.search.check()?;
    let run = OpenedRun::new(
        &arguments.run,
        arguments.checkpoint,
        arguments.data.as_deref(),
        &Place {
            device: device.clone(),
            precision: arguments.precision,
        },
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
        Some(file) => &dataset.read_rows(file, settings.data.strict)?,
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
    warn_of_long_rows(examples.iter().map(Example::tokens), model.config());
    let temperature = run.temperature(arguments.temperature);
    let name = format!("{}, step {}", arguments.run.display(), state.step);
    let evaluate = |kind: SearchKind| {
        let evaluator = Evaluator {
            trie: responses.trie(),
            search: SearchSettings {
                search: kind,
                ..arguments.search
            },
            batch_size: arguments.batch_size,
            temperature,
        };
        let evaluation = evaluator.evaluate(&format!("evaluating, {kind}"), model, &examples)?;
        let line = Line {
            temperature: Some(temperature),
            users_per_second: Some(evaluation.users_per_second),
            model_tokens: Some(evaluation.model_tokens),
            ..Line::new(
                match arguments.search.search {
                    SearchKind::Beam => name.clone(),
                    SearchKind::Exact => format!("{name}, {kind}"),
                },
                Measures::of(&evaluation.users, arguments.search.beams),
            )
        };
        anyhow::Ok((evaluation, line))
    };
    let mut rows = baselines(&dataset.training, &test, responses)?;
    let mut notes = Vec::new();
    let (mut evaluation, line) = evaluate(SearchKind::Beam)?;
    rows.push(line);
    if arguments.search.search == SearchKind::Exact {
        let (exact, line) = evaluate(SearchKind::Exact)?;
        rows.push(line);
        notes.push(missed_note(&evaluation, &exact, arguments.search.beams));
        evaluation = exact;
    }
    let ranks = match &arguments.ranks {
        Some(file) => file.clone(),
        None => arguments.run.join(RANKS_FILE),
    };
    write_ranks(&ranks, catalogue, &test, &evaluation.users)?;
    if let Some(file) = &arguments.lists {
        write_lists(file, catalogue, &test, &examples, &evaluation)?;
    }
    notes.push(format!(
        "{} users, {} beams; each user's rank is in {}.",
        test.len(),
        arguments.search.beams,
        ranks.display()
    ));
    notes.push(ERRORS_NOTE.into());
    let comparison = Comparison {
        command: "evaluate".into(),
        seed,
        users: test.len(),
        evaluated_on: Some(match &arguments.test {
            Some(file) => file.display().to_string(),
            None => arguments.split.to_string(),
        }),
        rows,
        notes,
    };
    // It belongs to the ranks that are beside it.
    if arguments.ranks.is_none() {
        write_json(&arguments.run.join(EVALUATION_FILE), &comparison)?;
    }
    comparison.print(arguments.json)
}

/// How often beam search missed what the exact search found.
fn missed_note(beam: &Evaluation, exact: &Evaluation, beams: usize) -> String {
    let users = beam.recommended.iter().zip(&exact.recommended);
    let missed = users.filter(|(beam, exact)| {
        let in_beam = |found: &Found| beam.iter().any(|other| other.items == found.items);
        !exact.iter().all(in_beam)
    });
    format!(
        "Beam search missed an item of the true top {beams} for {:.1} % of the users.",
        100.0 * missed.count() as f64 / beam.recommended.len().max(1) as f64
    )
}

/// A line of the file of lists.
#[derive(Serialize)]
struct UserList<'a> {
    user: &'a str,
    /// Tokens.
    prompt: &'a [u32],
    recommended: Vec<Listed<'a>>,
}

/// A title that a user was recommended.
#[derive(Serialize)]
struct Listed<'a> {
    /// The ids of the items that have it.
    items: Vec<&'a str>,
    log_probability: f64,
    score: f64,
}

impl<'a> Listed<'a> {
    fn new(found: &Found, catalogue: &'a Catalogue) -> Self {
        Self {
            items: catalogue.ids(&found.items).collect(),
            log_probability: found.log_probability,
            score: found.score,
        }
    }
}

/// Writes one JSON object a line, for each user.
fn write_lists(
    path: &Path,
    catalogue: &Catalogue,
    rows: &[Interaction],
    examples: &[Example],
    evaluation: &Evaluation,
) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(cannot)?);
    let users = rows.iter().zip(examples).zip(&evaluation.recommended);
    for ((row, example), recommended) in users {
        let list = UserList {
            user: &row.user,
            prompt: &example.prompt,
            recommended: recommended
                .iter()
                .map(|found| Listed::new(found, catalogue))
                .collect(),
        };
        serde_json::to_writer(&mut file, &list).with_context(cannot)?;
        file.write_all(b"\n").with_context(cannot)?;
    }
    file.flush().with_context(cannot)
}
