use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use serde::Serialize;

use crate::{
    commands::arguments::{ResumeArguments, TrainArguments},
    console::{print, print_json, table},
    data::examples::titles,
    exchange::Exchange,
    run::{
        checkpoint::{self, Best, TrainingState},
        folder::RunFolder,
        made_with::{MadeWith, hash_model, hash_titles, hash_tokenizer},
        output_folder::OutputFolder,
        rows::RunRows,
        settings::RunSettings,
        training::{Record, Training},
    },
    train::{
        metrics::{METRICS_FILE, read_metrics},
        settings::TrainingSettings,
        training_run::{self, Trained},
    },
};

/// Runs `msl train`.
pub fn train(arguments: &TrainArguments, device: &Device, exchange: &dyn Exchange) -> Result<()> {
    arguments.run.check()?;
    let mut settings = RunSettings {
        pretrained: absolute(arguments.run.pretrained.as_deref())?,
        ..arguments.run.clone().with_defaults()?
    };
    settings.adapter.check()?;
    if settings.pretrained.is_some() {
        settings.training = settings.training.for_adapters();
    }
    settings.training.check()?;
    settings.check_written()?;
    let output = match exchange.rank() {
        0 => {
            let (path, inputs) = (&arguments.output, settings.inputs());
            Some(OutputFolder::create(path, arguments.overwrite, &inputs)?)
        }
        _ => None,
    };
    let rows = RunRows::read(&settings)?;
    let (model, tokenizer) = match &settings.pretrained {
        Some(base) => rows.adapted_model(&settings, base, device)?,
        None => rows.new_model(&settings, device)?,
    };
    settings.tokenizer.end_token = tokenizer.end_text();
    settings.tokenizer.begins = true;
    let rows = rows.tokenize(&tokenizer, None)?;
    rows.warn_of_long_rows(&model);
    check_same(exchange, &rows.hash())?;
    if let Some(epochs) = settings.pretraining_epochs {
        let (prompt, responses) = (&settings.prompt, &rows.responses);
        let titles = titles(&rows.catalogue, prompt, &tokenizer, responses)?;
        let training = TrainingSettings {
            epochs,
            ..settings.training.clone()
        };
        training_run::pretrain(&model, responses.trie(), &training, &titles, exchange)?;
    }
    let trainer = rows.trainer(&model, &settings, exchange)?;
    let state = TrainingState {
        step: 0,
        temperature: trainer.temperature()?,
        seconds: 0.0,
        best: None,
    };
    let base = settings.pretrained.as_deref();
    let first_checkpoint = |folder: &Path| {
        let optimizer = trainer.optimizer();
        checkpoint::save(folder, &model, base, &tokenizer, optimizer, &state)?;
        Ok(MadeWith {
            titles: hash_titles(&rows.catalogue),
            rows: rows.hash(),
            tokenizer: hash_tokenizer(folder)?,
            trie: None,
            weights: base.map(hash_model).transpose()?,
        })
    };
    let path = &arguments.output;
    let trie = rows.responses.trie();
    let created = output
        .map(|output| RunFolder::create(path, output, &settings, trie, first_checkpoint))
        .transpose()?;
    let training = Training {
        exchange,
        record: created.as_ref().map(|(run, lock)| Record { run, lock }),
        path,
        settings: &settings,
        model: &model,
        tokenizer: &tokenizer,
        rows: &rows,
        metrics: Vec::new(),
        state,
    };
    let (trained, best) = training.train_to_end(trainer)?;
    report(exchange, path, &trained, best, arguments.json)
}

/// Runs `msl resume`.
pub fn resume(arguments: &ResumeArguments, device: &Device, exchange: &dyn Exchange) -> Result<()> {
    let run = arguments.moved.apply(RunFolder::open(&arguments.run)?)?;
    let lock = match exchange.rank() {
        0 => {
            let lock = run.lock()?;
            run.clean(&lock)?;
            Some(lock)
        }
        _ => None,
    };
    // The others read what is left after that.
    exchange.barrier()?;
    let settings = run.settings();
    run.data()?;
    let rows = RunRows::read(settings)?;
    run.check_titles(rows.catalogue())?;
    let checkpoint::Checkpoint {
        model,
        tokenizer,
        state,
    } = run.latest(&device.into())?;
    let rows = rows
        .tokenize(&tokenizer, Some(run.trie()?))
        .with_context(|| arguments.run.display().to_string())?;
    run.check_rows(&rows.hash())?;
    rows.warn_of_long_rows(&model);
    check_same(exchange, &rows.hash())?;
    let mut trainer = rows.trainer(&model, settings, exchange)?;
    let folder = run.checkpoint_path(state.step);
    let moments = checkpoint::load_moments(&folder, model.device())?;
    trainer
        .restore(state.step, moments, state.temperature)
        .with_context(|| folder.display().to_string())?;
    let metrics = read_metrics(run.path(), state.step)?;
    if metrics.len() < state.step {
        eprintln!(
            "warning: {} has {} of the {} steps that were taken: the others are in no loss and no report",
            run.path().join(METRICS_FILE).display(),
            metrics.len(),
            state.step
        );
    }
    let training = Training {
        exchange,
        record: lock.as_ref().map(|lock| Record { run: &run, lock }),
        path: run.path(),
        settings,
        model: &model,
        tokenizer: &tokenizer,
        rows: &rows,
        metrics,
        state,
    };
    let (trained, best) = training.train_to_end(trainer)?;
    report(exchange, run.path(), &trained, best, arguments.json)
}

/// Fails where processes that train together do not read the same rows in the same tokens.
fn check_same(exchange: &dyn Exchange, rows: &str) -> Result<()> {
    let all = exchange.gather(rows.as_bytes())?;
    let other = all.iter().position(|other| *other != all[0]);
    ensure!(
        other.is_none(),
        "rank {} reads other rows, or other tokens, than rank 0: give all ranks the same data, tokenizer and version of \
         msl",
        other.unwrap_or_default()
    );
    Ok(())
}

/// Makes a path absolute, so that a run can be resumed from any folder.
fn absolute(path: Option<&Path>) -> Result<Option<PathBuf>> {
    path.map(|path| {
        path.canonicalize()
            .with_context(|| format!("there is no {}", path.display()))
    })
    .transpose()
}

/// Says what came of a training, once for all ranks.
fn report(
    exchange: &dyn Exchange,
    run: &Path,
    trained: &Trained,
    best: Option<Best>,
    json: bool,
) -> Result<()> {
    if exchange.rank() > 0 {
        return Ok(());
    }
    #[derive(Serialize)]
    struct Report<'a> {
        command: &'static str,
        output: &'a Path,
        #[serde(flatten)]
        trained: &'a Trained,
        best: Option<Best>,
    }
    if json {
        return print_json(&Report {
            command: "train",
            output: run,
            trained,
            best,
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
        run.display().to_string(),
        trained.steps.to_string(),
        format!("{:.4}", trained.first_loss),
        format!("{:.4}", trained.last_loss),
        format!("{:.3}", trained.temperature),
        format!("{:.1}", trained.seconds),
        format!("{:.0}", trained.rows_per_second),
    ]);
    print(&table)?;
    match best {
        Some(Best { step, item_nll }) => print(format_args!(
            "Best on the validation rows: step {step}, item NLL {item_nll:.3}."
        )),
        None => Ok(()),
    }
}
