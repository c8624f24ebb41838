use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use candle_trie::TokenTrie;
use serde::Serialize;

use super::{examples, open_tokenizer, responses, warn_of_long_rows};
use crate::{
    commands::{
        arguments::{ResumeArguments, RunSettings, TrainArguments},
        console::{print, print_json, table},
    },
    data::{
        catalogue::Catalogue,
        dataset::{Dataset, sample},
        prompt::Prompt,
        responses::{Example, Responses},
        tokenizer::TextTokenizer,
    },
    evaluate::{Evaluator, search::SearchSettings},
    model::{Llama, pretrained::Pretrained},
    random::{Purpose, random},
    run::{
        checkpoint::{self, Best, TrainingState},
        folder::RunFolder,
        lock::Lock,
        made_with::{MadeWith, hash_model, hash_rows, hash_titles, hash_tokenizer},
        output::OutputFolder,
    },
    train::{
        Trainer,
        events::EventsFile,
        interrupt::{Interrupt, Interrupted},
        metrics::{MetricsFile, StepMetrics, read_metrics},
        schedule::Schedule,
        training_run::{self, Trained},
    },
};

/// Users whose item NLL is taken side by side on the way.
const VALIDATION_BATCH: usize = 16;

/// `msl train`
pub fn train(arguments: &TrainArguments, device: &Device) -> Result<()> {
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
    settings.training.check()?;
    settings.check_written()?;
    let output = OutputFolder::create(&arguments.output, arguments.overwrite, &settings.inputs())?;
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
    let base = settings.pretrained.as_deref();
    let (run, lock) = RunFolder::create(
        &arguments.output,
        output,
        &settings,
        task.responses.trie(),
        |folder| {
            let optimizer = trainer.optimizer();
            checkpoint::save(folder, &model, base, &tokenizer, optimizer, &state)?;
            Ok(MadeWith {
                titles: hash_titles(&task.catalogue),
                rows: task.hash(),
                tokenizer: hash_tokenizer(folder)?,
                weights: base.map(hash_model).transpose()?,
            })
        },
    )?;
    let training = Training {
        run: &run,
        lock: &lock,
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
    let run = arguments.moved.apply(RunFolder::open(&arguments.run)?)?;
    let lock = run.lock()?;
    run.clean(&lock)?;
    let settings = run.settings();
    run.data()?;
    let rows = Rows::read(settings)?;
    run.check_titles(rows.catalogue())?;
    let checkpoint::Checkpoint {
        model,
        tokenizer,
        state,
    } = run.latest(&device.into())?;
    let task = rows
        .tokenize(&tokenizer, Some(run.trie()?))
        .with_context(|| arguments.run.display().to_string())?;
    run.check_rows(&task.hash())?;
    task.warn_of_long_rows(&model);
    let mut trainer = task.trainer(&model, settings)?;
    let folder = run.checkpoint_path(state.step);
    let moments = checkpoint::load_moments(&folder, model.head().device())?;
    trainer
        .restore(state.step, moments, state.temperature)
        .with_context(|| folder.display().to_string())?;
    let training = Training {
        run: &run,
        lock: &lock,
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
    catalogue: Catalogue,
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
        if dataset.validation.len() < settings.data.validation {
            eprintln!(
                "warning: --validation asks for {} rows, and {} has {} for validation",
                settings.data.validation,
                settings.data.data.display(),
                dataset.validation.len()
            );
        }
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

    fn tokenize(self, tokenizer: &TextTokenizer, trie: Option<TokenTrie>) -> Result<Task> {
        let responses = responses(self.catalogue(), tokenizer, trie)?;
        let tokenize = |rows| examples(rows, self.catalogue(), &self.prompt, tokenizer, &responses);
        Ok(Task {
            training: tokenize(&self.dataset.training)?,
            validation: tokenize(&self.dataset.validation)?,
            responses,
            catalogue: self.dataset.catalogue,
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

    /// The hash of what is trained on and validated by.
    fn hash(&self) -> String {
        hash_rows(&self.training, &self.validation)
    }

    fn trainer<'a>(&'a self, model: &'a Llama, settings: &'a RunSettings) -> Result<Trainer<'a>> {
        let trie = self.responses.trie();
        Trainer::new(model, trie, &settings.loss, &settings.training)
    }
}

/// A run on its way.
struct Training<'a> {
    run: &'a RunFolder,
    lock: &'a Lock,
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
        let mut interrupted = None;
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
                self.run.check_there(self.lock)?;
                interrupted = interrupt.heard();
                if due || interrupted.is_some() {
                    self.save(trainer, due)?;
                }
                Ok(match interrupted.is_some() || self.has_ended(save_every) {
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
        if let Some(signal) = interrupted
            && self.state.step < steps
            && !self.has_ended(save_every)
        {
            let message = format!(
                "interrupted after step {} of {steps}, which is saved: go on with msl resume {}",
                self.state.step,
                self.run.path().display()
            );
            return Err(Interrupted { signal, message }.into());
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
        let item_nll = self.item_nll(&self.task.validation)?;
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

    fn item_nll(&self, examples: &[Example]) -> Result<f64> {
        let evaluator = Evaluator {
            trie: self.task.responses.trie(),
            search: SearchSettings::default(),
            batch_size: VALIDATION_BATCH,
            temperature: self.state.temperature.value,
        };
        evaluator.mean_item_nll(self.model, examples)
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

    /// Saves a checkpoint, unless its model has diverged: then the last one stays. A gradient may be finite and the step
    /// along it too long, which shows in the weights or in the scores of some rows: of the validation rows, if `validated`
    /// says that there was a look at them, else of the first that are trained on.
    fn save(&self, trainer: &Trainer, validated: bool) -> Result<()> {
        let rows = match validated && !self.task.validation.is_empty() {
            true => 0,
            false => self.task.training.len().min(VALIDATION_BATCH),
        };
        let item_nll = self.item_nll(&self.task.training[..rows])?;
        ensure!(
            item_nll.is_finite() && trainer.weights_are_finite()?,
            "the model has diverged by step {}: its weights or its scores are not finite any more. Try a lower \
             --learning-rate; the checkpoint before it is left in {}",
            self.state.step,
            self.run.path().display()
        );
        let best = self.state.best.map(|best| best.step);
        self.run.save(self.lock, self.state.step, best, |folder| {
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
    print(&table)?;
    match best {
        Some(Best { step, item_nll }) => print(format_args!(
            "Best on the validation rows: step {step}, item NLL {item_nll:.3}."
        )),
        None => Ok(()),
    }
}
