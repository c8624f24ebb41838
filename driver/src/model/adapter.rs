//! Saves and loads adapters in PEFT's format.

mod added_tokens;
mod config;

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor, safetensors};

use crate::{
    data::tokenizer::TextTokenizer,
    io::json::{read_json, write_json},
    model::{
        Llama, LlamaConfig, Weights,
        precision::Precision,
        pretrained::{
            CONFIG_FILE as MODEL_CONFIG_FILE, Pretrained, SafetensorsWeights, TOKENIZER_FILE,
            model_name,
        },
    },
};

pub use super::pretrained::ADAPTER_FILE as CONFIG_FILE;
pub use config::AdapterConfig;

/// PEFT's name for the file of the weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The prefix that PEFT gives to the names of a model's layers.
const PREFIX: &str = "base_model.model.";

/// Writes a model's adapters into a folder. `base` says where the model itself is.
pub fn save(folder: &Path, model: &Llama, base: &Path) -> Result<()> {
    let settings = model.adapters().context("the model has no adapters")?;
    let path = folder.join(WEIGHTS_FILE);
    let tensors: HashMap<String, Tensor> = (model.parameters().iter())
        .map(|(name, weight)| (format!("{PREFIX}{name}"), weight.as_tensor().clone()))
        .collect();
    safetensors::save(&tensors, &path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    write_json(
        &folder.join(CONFIG_FILE),
        &AdapterConfig::new(
            settings,
            model.added_tokens(),
            model.config().tie_word_embeddings,
            base,
        ),
    )
}

/// Gives a model the adapters of a folder, and says on standard error which file these are in.
pub fn load(folder: &Path, model: &mut Llama) -> Result<()> {
    let config = AdapterConfig::load(folder)?;
    let path = folder.join(WEIGHTS_FILE);
    let mut weights = SafetensorsWeights::open(std::slice::from_ref(&path), |stored| {
        model_name(stored.strip_prefix(PREFIX).unwrap_or(stored))
    })?;
    eprintln!("adapters: {}", weights.described());
    check_rank(&config, &weights).with_context(|| path.display().to_string())?;
    let settings = config
        .settings(&model.linear_paths())
        .with_context(|| folder.join(CONFIG_FILE).display().to_string())?;
    let added = (config.added_tokens())
        .and_then(|added| match added {
            Some(tokens) => check_behind(&tokens, folder, model).map(|()| Some(tokens)),
            None => Ok(None),
        })
        .with_context(|| folder.join(CONFIG_FILE).display().to_string())?;
    (model.adapt(&settings, 0))
        .and_then(|()| set(model, &mut weights))
        .and_then(|()| match added {
            Some(tokens) => added_tokens::load(model, tokens, &mut weights),
            None => Ok(()),
        })
        .and_then(|()| check_nothing_left(&weights))
        .with_context(|| path.display().to_string())
}

/// Refuses trained rows of tokens that a model has already. Models may have rows that no token uses: then the last token
/// that was added is that of the configuration beside the adapters, or of the tokenizer there, which PEFT writes no
/// configuration beside.
fn check_behind(tokens: &Range<usize>, folder: &Path, model: &Llama) -> Result<()> {
    let rows = model.config().vocab_size;
    let ends_there = || -> Result<bool> {
        let [config, tokenizer] = [MODEL_CONFIG_FILE, TOKENIZER_FILE].map(|name| folder.join(name));
        let rows = match config.is_file() {
            true => read_json::<LlamaConfig>(&config)?.vocab_size,
            false if tokenizer.is_file() => {
                TextTokenizer::load_for(&tokenizer, None, None)?.vocabulary()
            }
            false => return Ok(false),
        };
        Ok(rows == tokens.end)
    };
    ensure!(
        tokens.end >= rows || ends_there()?,
        "trainable_token_indices has the tokens {} to {} of the {rows} that the model has: expected those that were added \
         behind them, or up to the last token of a tokenizer in the same folder",
        tokens.start,
        tokens.end - 1
    );
    Ok(())
}

/// Refuses a rank that the file's tensors do not have, before memory is taken for it.
fn check_rank(config: &AdapterConfig, weights: &SafetensorsWeights) -> Result<()> {
    let mut downs = weights.shapes().filter(|(name, _)| name.ends_with(DOWN));
    let (name, shape) =
        (downs.next()).context("there is no tensor of a name that ends with lora_A.weight")?;
    ensure!(
        shape.first() == Some(&config.r),
        "{name} has the shape {shape:?}, where r of {CONFIG_FILE} is {}",
        config.r
    );
    Ok(())
}

const DOWN: &str = ".lora_A.weight";

/// Reads the tokenizer of a folder whose adapters have rows for `tokens`, which were added to those of the model's `own`.
pub fn tokenizer(
    folder: &Path,
    own: &TextTokenizer,
    tokens: &Range<usize>,
) -> Result<TextTokenizer> {
    let path = folder.join(TOKENIZER_FILE);
    ensure!(
        path.is_file(),
        "the adapters of {} have rows for {} tokens that were added to the model, and there is no {TOKENIZER_FILE} beside \
         them: save the tokenizer there",
        folder.display(),
        tokens.len()
    );
    let tokenizer = TextTokenizer::load_for(&path, own.end_text().as_deref(), None)?;
    ensure!(
        tokenizer.vocabulary() == tokens.end,
        "{} has {} tokens, and the adapters of its folder were trained with {}: save the tokenizer there that the codes were \
         added to",
        path.display(),
        tokenizer.vocabulary(),
        tokens.end
    );
    tokenizer.for_rows(tokens.end)
}

/// Returns the path of the model that a folder's adapters belong to, by their `adapter_config.json`.
pub fn base(folder: &Path) -> Result<PathBuf> {
    let config = folder.join(CONFIG_FILE);
    let base = AdapterConfig::load(folder)?.base_model_name_or_path;
    let base = (base.filter(|name| !name.is_empty()).map(PathBuf::from))
        .with_context(|| format!("{} does not name a model", config.display()))?;
    // PEFT writes the name by which the model was asked for, which need not be that of a folder.
    ensure!(
        base.exists(),
        "{} names the model {}, which does not exist: give its path with --model",
        config.display(),
        base.display()
    );
    Ok(base)
}

/// Loads the model at `base` with the adapters of a folder, whatever model the folder names.
pub fn load_onto(
    folder: &Path,
    base: &Path,
    end_token: Option<&str>,
    precision: Precision,
    device: &Device,
) -> Result<Llama> {
    let (mut model, _) = Pretrained::open(base, end_token)?.read(precision, device)?;
    load(folder, &mut model)?;
    Ok(model)
}

/// Sets the adapters of a model.
fn set(model: &Llama, weights: &mut SafetensorsWeights) -> Result<()> {
    for (name, weight) in model.parameters() {
        let Some(tensor) = weights.take(name)? else {
            bail!("there is no tensor {PREFIX}{name}");
        };
        ensure!(
            tensor.dims() == weight.dims(),
            "{name} has the shape {:?}, where the model and {CONFIG_FILE} ask for {:?}",
            tensor.dims(),
            weight.dims()
        );
        let tensor = tensor.to_dtype(weight.dtype())?;
        weight.set(&tensor.to_device(weight.device())?)?;
    }
    Ok(())
}

fn check_nothing_left(weights: &SafetensorsWeights) -> Result<()> {
    if let Some(name) = weights.left().iter().min() {
        bail!("the model and {CONFIG_FILE} have no place for the tensor {name}");
    }
    Ok(())
}
