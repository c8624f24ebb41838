use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, safetensors::MmapedSafetensors};
use serde::Deserialize;

use super::Pretrained;
use crate::{
    json::{read_json, write_json},
    model::{EMBEDDING, LlamaConfig, NamedTensors, Weights},
    tokenizer::TextTokenizer,
};

/// Hugging Face's name of the file of sizes.
pub const CONFIG_FILE: &str = "config.json";
/// Hugging Face's name of the tokenizer's file.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Hugging Face's name of the file of weights, where there is one.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Names the files of weights, where there are many.
const INDEX_FILE: &str = "model.safetensors.index.json";

pub fn open(folder: &Path, end_token: Option<&str>) -> Result<Pretrained> {
    let config: LlamaConfig = read_json(&folder.join(CONFIG_FILE))?;
    let tokenizer = TextTokenizer::load_for(
        &folder.join(TOKENIZER_FILE),
        end_token,
        config.end_tokens().first().copied(),
    )?;
    let weights = SafetensorsWeights::open(&weight_files(folder)?)?;
    Ok(Pretrained {
        config,
        stored: weights.dtype(),
        weights: Box::new(weights),
        tokenizer,
    })
}

/// Writes a model as Hugging Face lays one out, which `open` and transformers read.
pub fn save(
    folder: &Path,
    config: &LlamaConfig,
    tokenizer: &TextTokenizer,
    weights: &NamedTensors,
) -> Result<()> {
    write_json(&folder.join(CONFIG_FILE), config)?;
    tokenizer.save(&folder.join(TOKENIZER_FILE))?;
    let path = folder.join(WEIGHTS_FILE);
    // transformers wants to be told which library's tensors these are.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let tensors = weights.iter().map(|(name, weight)| (name, weight));
    safetensors::serialize_to_file(tensors, Some(format), &path)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index = folder.join(INDEX_FILE);
    if !index.exists() {
        return Ok(vec![folder.join(WEIGHTS_FILE)]);
    }
    let index: Index = read_json(&index)?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    Ok(files.into_iter().map(|file| folder.join(file)).collect())
}

/// Weights in safetensors files, which are mapped and read weight by weight.
pub struct SafetensorsWeights {
    files: MmapedSafetensors,
    left: BTreeSet<String>,
}

impl SafetensorsWeights {
    /// Maps the files.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let name = || {
            let paths: Vec<String> = paths
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            format!("cannot read the weights {}", paths.join(", "))
        };
        // SAFETY: the files are only read, and copied out of weight by weight while the model is made. A file that
        // another process cuts short meanwhile would end this one, as it would any that maps files.
        let files = unsafe { MmapedSafetensors::multi(paths) }.with_context(name)?;
        let left = files
            .tensors()
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| !is_computed(name))
            .collect();
        Ok(Self { files, left })
    }

    /// The type of the embedding, f32 where it is none that candle knows.
    fn dtype(&self) -> DType {
        let embedding = self.files.get(EMBEDDING).ok();
        let dtype = embedding.and_then(|embedding| embedding.dtype().try_into().ok());
        dtype.unwrap_or(DType::F32)
    }
}

/// Old checkpoints hold the rotary frequencies, which follow from the configuration.
fn is_computed(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

impl Weights for SafetensorsWeights {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        if !self.left.remove(name) {
            return Ok(None);
        }
        let tensor = self.files.load(name, &Device::Cpu);
        tensor
            .map(Some)
            .with_context(|| format!("cannot read the tensor {name}"))
    }

    fn left(&self) -> Vec<String> {
        self.left.iter().cloned().collect()
    }
}
