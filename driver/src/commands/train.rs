use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use candle_trie::TokenTrie;
use serde::Serialize;

use super::{examples, open_tokenizer, responses, warn_of_long_rows};
use crate::{
    arguments::{ResumeArguments, RunSettings, TrainArguments},
    catalogue::Catalogue,
    checkpoint::{self, Best, TrainingState},
    console::{print_json, table},
    dataset::{Dataset, sample},
    evaluate::Evaluator,
    events::EventsFile,
    interrupt::Interrupt,
    metrics::{MetricsFile, StepMetrics, read_metrics},
    model::Llama,
    output::OutputFolder,
    pretrained::Pretrained,
    prompt::Prompt,
    random::{Purpose, random},
    responses::{Example, Responses},
    run_folder::RunFolder,
    schedule::Schedule,
    search::SearchSettings,
    tokenizer::TextTokenizer,
    train::Trainer,
    training_run::{self, Trained},
};

/// Users whose item NLL is taken side by side on the way.
const VALIDATION_BATCH: usize = 16;

/// `msl train`
pub fn train(arguments: &TrainArguments, device: &Device) -> Result<()> {
    OutputFolder::check(&arguments.output, arguments.overwrite)?;
    arguments.run.check()?;
    let mut settings = RunSettings {
        data: arguments.run.data.absolute()?.with_defaults()?,
        pretrained: absolute(arguments.run.pretrained.as_deref())?,
        adapter: arguments.run.adapter.clone().with_separate_targets(),
        loss: arguments.run.loss.clone().with_defaults(),
        ..arguments.run.clone()
    };
    settings.adapter.check()?;
    if settings.pretrained.is_some() {
        settings.training = settings.training.for_adapters();
    }
    let data = Rows::read(&settings)?;
    let (model, tokenizer) = match &settings.pretrained {
        Some(base) => adapted_model(&settings, base, device)?,
        None => data.new_model(&settings, device)?,
    };
    settings.tokenizer.end_token = tokenizer.end_text();
    settings.tokenizer.begins = true;
    let task = data.tokenize(&tokenizer, None)?;
    task.warn_of_long_rows(&model);
    let trainer = task.trainer(&model, &settings)?;
    let state = TrainingState {
        step: 0,
        temperature: trainer.temperature()?,
        seconds: 0.0,
        best: None,
    };
    let run = RunFolder::create(
        &arguments.output,
        arguments.overwrite,
        &settings,
        task.responses.trie(),
        |folder| {
            let (base, optimizer) = (settings.pretrained.as_deref(), trainer.optimizer());
            checkpoint::save(folder, &model, base, &tokenizer, optimizer, &state)
        },
    )?;
    let _lock = run.lock()?;
    let training = Training {
        run: &run,
        model: &model,
        tokenizer: &tokenizer,
        task: &task,
        metrics: Vec::new(),
        state,
    };
    training.go_on(trainer, arguments.json)
}

/// `msl resume`
pub fn resume(arguments: &ResumeArguments, device: &Device) -> Result<()> {
    let run = RunFolder::open(&arguments.run)?;
    let _lock = run.lock()?;
    run.clean()?;
    let checkpoint::Checkpoint {
        model,
        tokenizer,
        state,
    } = run.latest(&device.into())?;
    let settings = run.settings();
    let task = Rows::read(settings)?
        .tokenize(&tokenizer, Some(run.trie()?))
        .with_context(|| arguments.run.display().to_string())?;
    task.warn_of_long_rows(&model);
    let mut trainer = task.trainer(&model, settings)?;
    let folder = run.checkpoint_path(state.step);
    let moments = checkpoint::load_moments(&folder, model.head().device())?;
    trainer
        .restore(state.step, moments, state.temperature)
        .with_context(|| folder.display().to_string())?;
    let training = Training {
        run: &run,
        model: &model,
        tokenizer: &tokenizer,
        task: &task,
        metrics: read_metrics(run.path(), state.step)?,
        state,
    };
    training.go_on(trainer, arguments.json)
}

/// A pretrained model with new adapters.
fn adapted_model(
    settings: &RunSettings,
    base: &Path,
    device: &Device,
) -> Result<(Llama, TextTokenizer)> {
    let pretrained = Pretrained::open(base, settings.tokenizer.end_token.as_deref())?;
    let (mut model, tokenizer) = pretrained.read(settings.precision, device)?;
    model.adapt(&settings.adapter, settings.training.seed)?;
    Ok((model, tokenizer))
}

/// A run is gone on with from anywhere.
fn absolute(path: Option<&Path>) -> Result<Option<PathBuf>> {
    path.map(|path| {
        path.canonicalize()
            .with_context(|| format!("there is no {}", path.display()))
    })
    .transpose()
}

/// What a run trains on and is validated by.
struct Rows {
    dataset: Dataset,
    prompt: Prompt,
}

/// The same in tokens.
struct Task {
    responses: Responses,
    training: Vec<Example>,
    validation: Vec<Example>,
}

impl Rows {
    fn read(settings: &RunSettings) -> Result<Self> {
        let seed = settings.training.seed;
        let mut dataset = Dataset::read(&settings.data, seed)?;
        dataset.training = sample(
            &dataset.training,
            settings.samples,
            &mut random(seed, Purpose::Sample),
        );
        ensure!(
            !dataset.training.is_empty(),
            "--samples 0 leaves nothing to train on"
        );
        dataset.validation = sample(
            &dataset.validation,
            Some(settings.data.validation),
            &mut random(seed, Purpose::Validation),
        );
        ensure!(
            settings.data.validation == 0 || !dataset.validation.is_empty(),
            "--validation {}: {} has no rows for validation",
            settings.data.validation,
            settings.data.data.display()
        );
        Ok(Self {
            dataset,
            prompt: settings.prompt.prompt(),
        })
    }

    /// A model to train from scratch.
    fn new_model(&self, settings: &RunSettings, device: &Device) -> Result<(Llama, TextTokenizer)> {
        let tokenizer = open_tokenizer(&settings.tokenizer, self.catalogue(), &self.prompt)?;
        let config = (settings.model).config(tokenizer.vocabulary(), tokenizer.end());
        let model = Llama::random(config, settings.training.seed, DType::F32, device)?;
        Ok((model, tokenizer))
    }

    fn tokenize(&self, tokenizer: &TextTokenizer, trie: Option<TokenTrie>) -> Result<Task> {
        let responses = responses(self.catalogue(), tokenizer, trie)?;
        let tokenize = |rows| examples(rows, self.catalogue(), &self.prompt, tokenizer, &responses);
        Ok(Task {
            training: tokenize(&self.dataset.training)?,
            validation: tokenize(&self.dataset.validation)?,
            responses,
        })
    }

    fn catalogue(&self) -> &Catalogue {
        &self.dataset.catalogue
    }
}

impl Task {
    fn warn_of_long_rows(&self, model: &Llama) {
        let rows = self.training.iter().chain(&self.validation);
        warn_of_long_rows(rows.map(Example::tokens), model.config());
    }

    fn trainer<'a>(&'a self, model: &'a Llama, settings: &'a RunSettings) -> Result<Trainer<'a>> {
        let trie = self.responses.trie();
        Trainer::new(model, trie, &settings.loss, &settings.training)
    }
}

/// A run on its way.
struct Training<'a> {
    run: &'a RunFolder,
    model: &'a Llama,
    tokenizer: &'a TextTokenizer,
    task: &'a Task,
    metrics: Vec<StepMetrics>,
    state: TrainingState,
}

impl Training<'_> {
    /// Trains from where the run stands to its end.
    fn go_on(mut self, mut trainer: Trainer, json: bool) -> Result<()> {
        let settings = self.run.settings();
        let interrupt = Interrupt::listen()?;
        let mut metrics = MetricsFile::create(self.run.path(), &self.metrics)?;
        let mut events = EventsFile::create(self.run.path(), &self.metrics)?;
        let earlier = self.state.seconds;
        let schedule = Schedule::new(&settings.training, &self.task.training);
        let steps = schedule.steps();
        let save_every = settings.checkpoints.save_every;
        let save_every = save_every.unwrap_or(schedule.steps_of_an_epoch()).max(1);
        if !self.has_ended(save_every) {
            let examples = &self.task.training;
            let after = |trainer: &Trainer, mut step: StepMetrics, elapsed: Duration| {
                let due = step.step.is_multiple_of(save_every) || step.step == steps;
                self.state.step = step.step;
                self.state.temperature = trainer.temperature()?;
                self.state.seconds = earlier + elapsed.as_secs_f64();
                if due {
                    step.validation_nll = self.validate()?;
                }
                metrics.write(&step)?;
                events.write(&step)?;
                self.metrics.push(step);
                let interrupted = interrupt.heard();
                if due || interrupted {
                    self.save(trainer)?;
                }
                Ok(match interrupted || self.has_ended(save_every) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
            };
            training_run::train(
                "training",
                &mut trainer,
                &settings.training,
                examples,
                after,
            )?;
        }
        if self.state.step < steps && !self.has_ended(save_every) {
            bail!(
                "interrupted after step {} of {steps}, which is saved: go on with msl resume {}",
                self.state.step,
                self.run.path().display()
            );
        }
        let temperature = self.state.temperature.value;
        let trained = Trained::of(&self.metrics, temperature, self.state.seconds);
        report(self.run.path(), &trained, self.state.best, json)
    }

    /// The item NLL of the validation rows, if there are any; the lowest makes the best checkpoint.
    fn validate(&mut self) -> Result<Option<f64>> {
        if self.task.validation.is_empty() {
            return Ok(None);
        }
        let evaluator = Evaluator {
            trie: self.task.responses.trie(),
            search: SearchSettings::default(),
            batch_size: VALIDATION_BATCH,
            temperature: self.state.temperature.value,
        };
        let item_nll = evaluator.mean_item_nll(self.model, &self.task.validation)?;
        ensure!(
            item_nll.is_finite(),
            "the item NLL of the validation rows after step {} is {item_nll}: try a lower --learning-rate",
            self.state.step
        );
        if self.state.best.is_none_or(|best| item_nll < best.item_nll) {
            self.state.best = Some(Best {
                step: self.state.step,
                item_nll,
            });
        }
        Ok(Some(item_nll))
    }

    /// Whether patience has come to its end.
    fn has_ended(&self, save_every: usize) -> bool {
        match (self.run.settings().checkpoints.patience, self.state.best) {
            (Some(patience), Some(best)) => {
                (self.state.step - best.step) / save_every >= patience.max(1)
            }
            _ => false,
        }
    }

    fn save(&self, trainer: &Trainer) -> Result<()> {
        let best = self.state.best.map(|best| best.step);
        self.run.save(self.state.step, best, |folder| {
            let optimizer = trainer.optimizer();
            let base = self.run.settings().pretrained.as_deref();
            checkpoint::save(
                folder,
                self.model,
                base,
                self.tokenizer,
                optimizer,
                &self.state,
            )
        })
    }
}

fn report(run: &Path, trained: &Trained, best: Option<Best>, json: bool) -> Result<()> {
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
    println!("{table}");
    if let Some(Best { step, item_nll }) = best {
        println!("Best on the validation rows: step {step}, item NLL {item_nll:.3}.");
    }
    Ok(())
}
