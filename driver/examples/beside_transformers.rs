//! Our side of `scripts/check-against-transformers` and `scripts/compare-training`.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, safetensors};
use candle_trie::TokenTrie;
use clap::{Args, Parser};
use msl::{
    commands::arguments::{Arguments, Command},
    data::{
        arguments::DataArguments,
        dataset::Dataset,
        examples::{Example, chosen, examples},
        prompt::{Prompt, PromptStyle},
        responses::Responses,
        tokenizer::TextTokenizer,
    },
    exchange::Alone,
    io::json::{read_json, write_json},
    model::{
        Llama, LoraSettings, adapter,
        precision::Precision,
        pretrained::{self, Pretrained},
    },
    train::{Trainer, loss_settings::LossSettings, settings::TrainingSettings},
};
use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
enum Task {
    /// Writes a model, a GGUF file above all, as a Hugging Face folder.
    Export { model: PathBuf, folder: PathBuf },
    /// Writes the logits of `tokens [batch, tokens]` of a safetensors file.
    Logits {
        model: PathBuf,
        tokens: PathBuf,
        output: PathBuf,
        #[arg(long)]
        adapter: Option<PathBuf>,
    },
    /// Writes new adapters that are not nothing.
    Adapter {
        model: PathBuf,
        folder: PathBuf,
        #[arg(long, value_delimiter = ',')]
        targets: Vec<String>,
        /// Adds this number of tokens to the model.
        #[arg(long, default_value_t = 0)]
        added: usize,
    },
    /// Writes batches of the first training rows of a catalogue.
    Batches {
        model: PathBuf,
        catalogue: PathBuf,
        output: PathBuf,
        #[arg(long)]
        rows: usize,
        #[arg(long)]
        steps: usize,
    },
    /// Trains the adapters of a folder on batches in a JSON file.
    Train(TrainTask),
}

#[derive(Args)]
struct TrainTask {
    model: PathBuf,
    adapter: PathBuf,
    batches: PathBuf,
    /// The folder for the adapters and steps.json.
    output: PathBuf,
    #[arg(long)]
    learning_rate: f64,
    /// Computes in f64, where what is left of a difference is no rounding.
    #[arg(long)]
    double: bool,
    /// Options of `msl train` as they stand there.
    #[arg(last = true)]
    options: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Batches {
    /// Every response that there is.
    catalogue: Vec<Vec<u32>>,
    batches: Vec<Vec<Row>>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    prompt: Vec<u32>,
    response: Vec<u32>,
}

#[derive(Serialize)]
struct Steps {
    losses: Vec<f64>,
    seconds: Vec<f64>,
    /// Tokens that the model was given, without padding.
    tokens: Vec<usize>,
    /// Highest resident set of this process, in bytes.
    peak_memory: u64,
    /// The resident set before the first step, in bytes.
    memory_before: u64,
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Export { model, folder } => {
            let (mut model, tokenizer) =
                Pretrained::open(&model, None)?.read(Precision::F32, &Device::Cpu)?;
            std::fs::create_dir_all(&folder)?;
            let weights = model.merged_weights()?;
            pretrained::save(&folder, model.config(), &tokenizer, &weights)
        }
        Task::Logits {
            model,
            tokens,
            output,
            adapter,
        } => {
            let model = open(&model, adapter.as_deref())?;
            let tokens = safetensors::load(&tokens, &Device::Cpu)?;
            let tokens = tokens.get("tokens").context("there are no tokens")?;
            let hidden = model.hidden(tokens)?;
            let logits = model.head()?.logits(&hidden)?;
            safetensors::save(&HashMap::from([("logits", logits)]), &output)?;
            Ok(())
        }
        Task::Adapter {
            model: path,
            folder,
            targets,
            added,
        } => {
            let (mut model, tokenizer) =
                Pretrained::open(&path, None)?.read(Precision::F32, &Device::Cpu)?;
            let settings = LoraSettings {
                targets,
                ..LoraSettings::default()
            };
            model.adapt(&settings, 5)?;
            let codes: Vec<String> = (0..added).map(|code| format!("<a_{code}>")).collect();
            let (tokenizer, tokens) = tokenizer.with_codes(&codes)?;
            if !tokens.is_empty() {
                let rows = model.initial_rows(tokens.clone(), &[])?;
                model.add_tokens(tokens, rows)?;
            }
            for (_, weight) in model.parameters() {
                weight.set(&weight.randn_like(0.0, 0.05)?)?;
            }
            std::fs::create_dir_all(&folder)?;
            tokenizer.save(&folder.join(pretrained::TOKENIZER_FILE))?;
            adapter::save(&folder, &model, &path)
        }
        Task::Batches {
            model,
            catalogue,
            output,
            rows,
            steps,
        } => {
            let tokenizer = Pretrained::open(&model, None)?.tokenizer;
            let batches = batches(&catalogue, &tokenizer, rows, steps)?;
            write_json(&output, &batches)
        }
        Task::Train(task) => train(&task),
    }
}

fn open(model: &Path, adapter: Option<&Path>) -> Result<Llama> {
    open_in(DType::F32, model, adapter)
}

fn open_in(dtype: DType, model: &Path, adapter: Option<&Path>) -> Result<Llama> {
    let stored = Pretrained::open(model, None)?;
    let mut model = Llama::of(stored.config, stored.weights, dtype, &Device::Cpu, true)?;
    if let Some(adapter) = adapter {
        adapter::load(adapter, &mut model)?;
    }
    Ok(model)
}

fn batches(folder: &Path, tokenizer: &TextTokenizer, rows: usize, steps: usize) -> Result<Batches> {
    let Dataset {
        catalogue,
        training: interactions,
        ..
    } = Dataset::read(&DataArguments::of(folder), 0)?;
    let responses = Responses::new(&catalogue, tokenizer)?;
    let prompt = Prompt::new(PromptStyle::Alpaca);
    let read = &interactions[..interactions.len().min(rows.saturating_mul(steps))];
    let examples = examples(read, &catalogue, &prompt, tokenizer, &responses)?;
    let row = |example: &Example| Row {
        prompt: example.prompt.clone(),
        response: example.response.clone(),
    };
    let paths = (0..catalogue.items().len() as u64).map(|item| responses.path(item));
    Ok(Batches {
        catalogue: paths
            .map(|path| Ok(path?.to_vec()))
            .collect::<Result<_>>()?,
        batches: (examples.chunks(rows))
            .map(|batch| batch.iter().map(row).collect())
            .collect(),
    })
}

fn train(task: &TrainTask) -> Result<()> {
    let dtype = if task.double { DType::F64 } else { DType::F32 };
    let model = open_in(dtype, &task.model, Some(&task.adapter))?;
    let data: Batches = read_json(&task.batches)?;
    let trie = TokenTrie::new((0..).zip(data.catalogue.iter()))?;
    let (loss, training) = settings(&task.options)?;
    let mut trainer = Trainer::new(&model, &trie, &loss, &training, &Alone)?;
    let mut steps = Steps {
        losses: Vec::new(),
        seconds: Vec::new(),
        tokens: Vec::new(),
        peak_memory: 0,
        memory_before: memory("VmRSS")?,
    };
    for batch in data.batches {
        let examples: Vec<Example> = batch
            .into_iter()
            .map(|row| Example {
                chosen: chosen(&trie, &row.response),
                prompt: row.prompt,
                response: row.response,
                target: 0,
            })
            .collect();
        let begun = Instant::now();
        let step = trainer.step(&examples.iter().collect::<Vec<_>>(), task.learning_rate)?;
        steps.seconds.push(begun.elapsed().as_secs_f64());
        steps.losses.push(step.loss);
        steps.tokens.push(step.tokens);
    }
    steps.peak_memory = memory("VmHWM")?;
    std::fs::create_dir_all(&task.output)?;
    write_json(&task.output.join("steps.json"), &steps)?;
    adapter::save(&task.output, &model, &task.model)
}

/// The settings of `msl train` with these options.
fn settings(options: &[String]) -> Result<(LossSettings, TrainingSettings)> {
    let fixed = ["msl", "train", "--data", ".", "--output", "."];
    let words = fixed.into_iter().chain(options.iter().map(String::as_str));
    match Arguments::try_parse_from(words)?.command {
        Command::Train(arguments) => Ok((arguments.run.loss, arguments.run.training)),
        _ => bail!("these are no options of msl train"),
    }
}

fn memory(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name));
    let kibibytes = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kibibytes
        .with_context(|| format!("no {name}"))?
        .parse::<u64>()?
        << 10)
}
