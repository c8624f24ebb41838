use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use candle_trie::SearchResult;
use serde::Serialize;

use super::opened_run::OpenedRun;
use crate::{
    commands::arguments::EvaluateArguments,
    data::{
        catalogue::{Catalogue, Interaction},
        dataset::sample,
        examples::{Example, examples, warn_of_long_rows},
        targets::Targets,
    },
    evaluate::{
        Evaluation, Evaluator,
        baselines::baselines,
        comparison::{Comparison, ERRORS_NOTE, EVALUATION_FILE, Line},
        decoding::Decoding,
        earlier::keep_earlier,
        ranking::Pruned,
        ranks::{RANKS_FILE, write_ranks},
        search::{SearchKind, SearchSettings},
    },
    exchange::Exchange,
    io::{file_name, output::OutputFile, parent},
    model::precision::Place,
    random::{Purpose, random},
    run::{
        apart::{check_apart, is_place},
        checkpoint::Checkpoint,
        folder::RunFolder,
        layout::{SETTINGS_FILE, run_files},
    },
};

/// The note on a model that has diverged.
const NOT_FINITE: &str = "Some item NLLs are not finite: the model scores with NaN or infinity, as one does whose training \
                          has diverged. JSON has null in their place.";

/// Runs `msl evaluate`.
pub fn evaluate(
    arguments: &EvaluateArguments,
    device: &Device,
    exchange: &dyn Exchange,
) -> Result<()> {
    arguments.search.check()?;
    let folder = arguments.moved.apply(RunFolder::open(&arguments.run)?)?;
    // The first rank writes for all.
    let outputs = match exchange.rank() {
        0 => Some(Outputs::create(arguments, &folder)?),
        _ => None,
    };
    let place = Place {
        device: device.clone(),
        precision: arguments.precision,
    };
    let run = OpenedRun::new(folder, arguments.checkpoint, &place)?;
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
    let examples = examples(&test, catalogue, &settings.prompt, tokenizer, responses)?;
    let positions = model.config().max_position_embeddings;
    warn_of_long_rows(examples.iter().map(Example::tokens), positions);
    let trained = sample(
        &dataset.training,
        settings.samples,
        &mut random(seed, Purpose::Sample),
    );
    let targets = Targets::new(&trained, &test);
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
            exchange,
        };
        let evaluation = (evaluator.evaluate(&format!("evaluating, {kind}"), model, &examples))
            .with_context(|| arguments.run.display().to_string())?;
        let line = Line {
            temperature: Some(temperature),
            users_per_second: Some(evaluation.users_per_second),
            model_tokens: Some(evaluation.model_tokens),
            ..Line::of_users(
                match arguments.search.search {
                    SearchKind::Beam => name.clone(),
                    SearchKind::Exact => format!("{name}, {kind}"),
                },
                &evaluation.users,
                arguments.search.beams,
                &targets,
            )
        };
        anyhow::Ok((evaluation, line))
    };
    let mut rows = baselines(&dataset.training, &test, &targets, responses)?;
    let mut notes = Vec::new();
    let (mut evaluation, mut line) = evaluate(SearchKind::Beam)?;
    if arguments.search.search == SearchKind::Exact {
        let beams = arguments.search.beams;
        let (exact, exact_line) = evaluate(SearchKind::Exact)?;
        line.pruned = pruned(&evaluation, &exact, beams);
        rows.push(std::mem::replace(&mut line, exact_line));
        notes.push(missed_note(&evaluation, &exact, beams));
        notes.push(format!(
            "Pruned are the users whose item is in the true top K, as the exact search finds it, and nowhere in the \
             list of a beam search with {beams} beams."
        ));
        evaluation = exact;
    }
    rows.push(line);
    let Some(outputs) = outputs else {
        return Ok(());
    };
    notes.push(format!(
        "{} users, {} beams; each user's rank is in {}.",
        test.len(),
        arguments.search.beams,
        outputs.ranks.path().display()
    ));
    notes.push(targets.counts().sentence());
    if trained.len() < dataset.training.len() {
        notes.push(format!(
            "Training rows are here the {} that the run was trained on. Popularity and the item graph count all {} of the data.",
            trained.len(),
            dataset.training.len()
        ));
    }
    if !evaluation
        .users
        .iter()
        .all(|user| user.item_nll.is_finite())
    {
        notes.push(NOT_FINITE.into());
    }
    notes.push(ERRORS_NOTE.into());
    let decoding = Decoding {
        step: state.step,
        search: arguments.search,
        temperature,
        dtype: arguments.precision.unwrap_or(settings.precision),
        data: settings.data.data.clone(),
        rows: match &arguments.test {
            Some(file) => file.display().to_string(),
            None => arguments.split.to_string(),
        },
        samples: arguments.samples,
    };
    let comparison = Comparison {
        command: "evaluate".into(),
        seed,
        users: test.len(),
        targets: targets.counts(),
        evaluated_on: Some(decoding.rows.clone()),
        decoding: Some(decoding),
        rows,
        notes,
    };
    outputs.finish(&comparison, catalogue, &test, &examples, &evaluation)?;
    comparison.print(arguments.json)
}

/// Returns a sentence on how often beam search missed what the exact search found.
fn missed_note(beam: &Evaluation, exact: &Evaluation, beams: usize) -> String {
    let users = beam.recommended.iter().zip(&exact.recommended);
    let missed = users.filter(|(beam, exact)| {
        let in_beam = |found: &SearchResult| beam.iter().any(|other| other.items == found.items);
        !exact.iter().all(in_beam)
    });
    format!(
        "Beam search missed an item of the true top {beams} for {:.1} % of the users.",
        100.0 * missed.count() as f64 / beam.recommended.len().max(1) as f64
    )
}

/// Counts the targets that beam search pruned, of the true top ten and of all that was searched for.
fn pruned(beam: &Evaluation, exact: &Evaluation, beams: usize) -> Vec<Pruned> {
    let mut tops = vec![beams.min(10), beams];
    tops.dedup();
    let of_top = |top| Pruned::of(&beam.users, &exact.users, top);
    tops.into_iter().map(of_top).collect()
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
    fn new(found: &SearchResult, catalogue: &'a Catalogue) -> Self {
        Self {
            items: catalogue.ids(&found.items).collect(),
            log_probability: found.log_probability,
            score: found.score,
        }
    }
}

/// The files of an evaluation. They are begun before it, so that a path that cannot be written is refused at once.
struct Outputs<'a> {
    ranks: OutputFile,
    lists: Option<OutputFile>,
    /// The folder of the run and its table, which belongs to the ranks that are beside it.
    run: Option<(&'a Path, OutputFile)>,
}

impl<'a> Outputs<'a> {
    fn create(arguments: &'a EvaluateArguments, folder: &RunFolder) -> Result<Self> {
        let own = run_files(folder.path())?;
        let read = folder.settings().inputs();
        let inputs: Vec<&Path> = (read.into_iter().chain(arguments.test.as_deref()))
            .chain(own.iter().map(PathBuf::as_path))
            .collect();
        let run = &arguments.run;
        let named = |option: &str, file: &Path| {
            ensure!(
                ![RANKS_FILE, EVALUATION_FILE]
                    .iter()
                    .any(|name| is_place(file, run, name)),
                "{option} {} is where the run keeps its evaluation: name another",
                file.display()
            );
            check_apart(option, file, &inputs)?;
            OutputFile::create(file)
        };
        let (ranks, lists) = (&arguments.ranks, &arguments.lists);
        if let (Some(ranks), Some(lists)) = (ranks, lists) {
            ensure!(
                !is_place(ranks, parent(lists), &file_name(lists)),
                "--ranks and --lists name the same file"
            );
        }
        let lists = lists
            .as_deref()
            .map(|file| named("--lists", file))
            .transpose()?;
        // By whatever name, these ranks belong to the table beside them.
        let elsewhere = |file: &&PathBuf| !is_place(file, run, RANKS_FILE);
        if let Some(file) = ranks.as_ref().filter(elsewhere) {
            return Ok(Self {
                ranks: named("--ranks", file)?,
                lists,
                run: None,
            });
        }
        let within = |file: &str| {
            OutputFile::create(&run.join(file)).context(
                "to keep the evaluation out of the folder of the run, name a file with --ranks",
            )
        };
        Ok(Self {
            ranks: within(RANKS_FILE)?,
            lists,
            run: Some((run, within(EVALUATION_FILE)?)),
        })
    }

    fn finish(
        self,
        comparison: &Comparison,
        catalogue: &Catalogue,
        rows: &[Interaction],
        examples: &[Example],
        evaluation: &Evaluation,
    ) -> Result<()> {
        if let Some(file) = self.lists {
            write_lists(file, catalogue, rows, examples, evaluation)?;
        }
        // Another evaluation of the run may end at the same moment: one puts its files there after the other. The run's
        // own lock is its training's. Where there are no locks, nothing is to be waited for.
        let turn = self.run.as_ref().map(|(run, _)| run.join(SETTINGS_FILE));
        let turn = turn.and_then(|file| File::open(file).ok());
        if let Some(turn) = &turn {
            let _ = turn.lock();
        }
        if let (Some((run, _)), Some(decoding)) = (&self.run, &comparison.decoding) {
            keep_earlier(run, decoding)?;
        }
        write_ranks(self.ranks, catalogue, rows, &evaluation.users)?;
        if let Some((_, mut file)) = self.run {
            let text = serde_json::to_string_pretty(comparison)? + "\n";
            let written = file.write_all(text.as_bytes());
            written.with_context(|| format!("cannot write {}", file.path().display()))?;
            file.finish()?;
        }
        Ok(())
    }
}

/// Writes one JSON object a line, for each user.
fn write_lists(
    mut file: OutputFile,
    catalogue: &Catalogue,
    rows: &[Interaction],
    examples: &[Example],
    evaluation: &Evaluation,
) -> Result<()> {
    let path = file.path().to_owned();
    let cannot = || format!("cannot write {}", path.display());
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
    file.finish()
}
