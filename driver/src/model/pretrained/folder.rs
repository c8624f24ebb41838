use std::{
    collections::{BTreeMap, HashMap},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use serde::Deserialize;

use super::{Pretrained, SafetensorsWeights, gguf};
use crate::{
    data::tokenizer::TextTokenizer,
    io::{
        entries, file_name,
        json::{read_json, write_json},
    },
    model::{EMBEDDING, LlamaConfig, NamedTensors},
};

/// Hugging Face's name for the file of a model's configuration.
pub const CONFIG_FILE: &str = "config.json";
/// Hugging Face's name for the file of the tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Hugging Face's name for the file of weights, where there is a single one.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Hugging Face's name for the file that lists the files of weights, where there are several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// PEFT's name for the file of the configuration of adapters.
pub const ADAPTER_FILE: &str = "adapter_config.json";

/// Opens a Hugging Face folder, or the GGUF model of a folder that has no other.
pub fn open(folder: &Path, end_token: Option<&str>) -> Result<Pretrained> {
    ensure!(
        !folder.join(ADAPTER_FILE).is_file(),
        "{} holds adapters, by its {}: add them to their model with msl merge, and name the folder that comes out",
        folder.display(),
        ADAPTER_FILE
    );
    let path = folder.join(WEIGHTS_FILE);
    let index = folder.join(INDEX_FILE);
    let weights = if path.exists() {
        // transformers looks for the one file first, and so does what it calls for.
        if index.exists() {
            eprintln!(
                "{} is read, and {INDEX_FILE} beside it and the files that it names are not",
                path.display()
            );
        }
        SafetensorsWeights::open(&[path], model_name)?
    } else if index.exists() {
        read_index(folder, &index)?
    } else {
        return gguf::open(&only_gguf_file(folder)?, end_token);
    };
    let path = folder.join(CONFIG_FILE);
    let config: LlamaConfig = read_json(&path)?;
    if let Some(quantised) = config.others.get("quantization_config")
        && !quantised.is_null()
    {
        bail!(
            "{} has a quantization_config, and quantised weights are read from GGUF files alone: take the model that it \
             was made of",
            path.display()
        );
    }
    let end = config.end_tokens().first().copied();
    let tokenizer = TextTokenizer::load_for(&folder.join(TOKENIZER_FILE), end_token, end)?;
    Ok(Pretrained {
        path: folder.to_owned(),
        described: weights.described(),
        config,
        stored: weights.dtype(EMBEDDING).unwrap_or(DType::F32),
        weights: Box::new(weights),
        tokenizer,
    })
}

/// Returns the name of a tensor in a model with a head. A model that is saved without its head has names that lack
/// `model.`.
pub fn model_name(stored: &str) -> String {
    let parts = ["layers.", "embed_tokens.", "norm."];
    match parts.iter().any(|part| stored.starts_with(part)) {
        true => format!("model.{stored}"),
        false => stored.to_owned(),
    }
}

/// Reads an index: the names of tensors and those of the files that hold them.
pub fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    Ok(read_json::<Index>(index)?.weight_map)
}

/// Opens the files of weights that an index names. Files that do not hold the tensors that it says are an error.
fn read_index(folder: &Path, index: &Path) -> Result<SafetensorsWeights> {
    let weight_map = weight_map(index)?;
    let mut files: Vec<&String> = weight_map.values().collect();
    files.sort();
    files.dedup();
    for file in &files {
        let parts: Vec<Component> = Path::new(file.as_str()).components().collect();
        ensure!(
            matches!(parts[..], [Component::Normal(_)]),
            "{} names the file {file:?}, which is not one of its folder",
            index.display()
        );
    }
    let paths: Vec<PathBuf> = files.iter().map(|file| folder.join(file)).collect();
    let weights = SafetensorsWeights::open(&paths, model_name)
        .with_context(|| format!("{} names its files", index.display()))?;
    let mut held: BTreeMap<&str, &Path> = weights.tensors().collect();
    for (tensor, file) in &weight_map {
        let holder = held.remove(tensor.as_str());
        ensure!(
            holder == Some(&folder.join(file)),
            "{} says that {tensor} is in {file}, which it is not: the files are not those that the index was written for",
            index.display()
        );
    }
    if let Some((tensor, path)) = held.first_key_value() {
        bail!(
            "{} does not name the tensor {tensor}, which is in {}: the files are not those that the index was written for",
            index.display(),
            path.display()
        );
    }
    Ok(weights)
}

/// Returns the only GGUF file of a folder, or the first of those that one model is split into.
fn only_gguf_file(folder: &Path) -> Result<PathBuf> {
    let paths = entries(folder)?;
    let mut names: Vec<String> = paths.iter().map(|path| file_name(path)).collect();
    names.sort();
    let with = |ending: &'static str| names.iter().filter(move |name| name.ends_with(ending));
    let later_part = |name: &&String| name.contains("-of-") && !name.contains("-00001-of-");
    let models: Vec<&String> = with(".gguf").filter(|name| !later_part(name)).collect();
    match models[..] {
        [model] => Ok(folder.join(model)),
        [] => {
            let others: Vec<&str> = [".safetensors", ".bin", ".pt", ".pth", ".gguf"]
                .into_iter()
                .flat_map(with)
                .map(String::as_str)
                .collect();
            bail!(
                "{} has no {WEIGHTS_FILE}, no {INDEX_FILE} and no GGUF model{}",
                folder.display(),
                match others.is_empty() {
                    true => String::new(),
                    false => format!(
                        ", only {}, which cannot be read without one",
                        others.join(", ")
                    ),
                }
            )
        }
        _ => bail!(
            "{} has several GGUF files, of which --model is to name one: {}",
            folder.display(),
            models
                .iter()
                .map(|name| name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// Writes a model as Hugging Face lays one out, which `open` and transformers read.
pub fn save(
    folder: &Path,
    config: &LlamaConfig,
    tokenizer: &TextTokenizer,
    weights: &NamedTensors,
) -> Result<()> {
    let embedding = weights.iter().find(|(name, _)| name == EMBEDDING);
    let dtype = embedding.map_or(DType::F32, |(_, weight)| weight.dtype());
    write_json(&folder.join(CONFIG_FILE), &config.clone().of_dtype(dtype))?;
    tokenizer.save(&folder.join(TOKENIZER_FILE))?;
    let path = folder.join(WEIGHTS_FILE);
    // transformers wants to be told which library's tensors these are.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let tensors = weights.iter().map(|(name, weight)| (name, weight));
    safetensors::serialize_to_file(tensors, Some(format), &path)
        .with_context(|| format!("cannot write {}", path.display()))
}
