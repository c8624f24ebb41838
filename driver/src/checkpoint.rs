//! A model at one step of its training, with all that the training needs to go on from there. The folder is one that
//! Hugging Face's tools read.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor, safetensors};
use candle_trie::TemperatureState;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    model::{Llama, LlamaConfig},
    optimizer::AdamW,
    tokenizer::TextTokenizer,
};

const WEIGHTS_FILE: &str = "model.safetensors";
const CONFIG_FILE: &str = "config.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
const MOMENTS_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";

/// Where a training stands, besides its weights and the moments of its optimizer. The order of the rows and what drops
/// out follow from the seed and the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// Steps taken.
    pub step: usize,
    /// The temperature as it stands.
    pub temperature: TemperatureState,
    /// Seconds of training.
    pub seconds: f64,
    /// The checkpoint that was best on the validation rows.
    pub best: Option<Best>,
}

/// What a checkpoint was chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its step.
    pub step: usize,
    /// Its mean item NLL on the validation rows.
    pub item_nll: f64,
}

/// A checkpoint that was read.
pub struct Checkpoint {
    /// The model.
    pub model: Llama,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// Where the training stood.
    pub state: TrainingState,
}

/// Writes a checkpoint into a folder.
pub fn save(
    folder: &Path,
    model: &Llama,
    tokenizer: &TextTokenizer,
    optimizer: &AdamW,
    state: &TrainingState,
) -> Result<()> {
    model.save(&folder.join(WEIGHTS_FILE))?;
    write_json(&folder.join(CONFIG_FILE), model.config())?;
    tokenizer.save(&folder.join(TOKENIZER_FILE))?;
    let moments = folder.join(MOMENTS_FILE);
    safetensors::save(&optimizer.moments(), &moments)
        .with_context(|| format!("cannot write {}", moments.display()))?;
    write_json(&folder.join(STATE_FILE), state)
}

impl Checkpoint {
    /// Reads a checkpoint; parts that do not fit together are an error. `end_token` names the token that ends a
    /// response, where that was needed in training.
    pub fn load(folder: &Path, end_token: Option<&str>) -> Result<Self> {
        let config: LlamaConfig = read_json(&folder.join(CONFIG_FILE))?;
        let tokenizer = TextTokenizer::load(&folder.join(TOKENIZER_FILE), end_token)?;
        ensure!(
            tokenizer.vocabulary() <= config.vocab_size,
            "{}: the tokenizer has {} tokens, but vocab_size of {CONFIG_FILE} is {}",
            folder.display(),
            tokenizer.vocabulary(),
            config.vocab_size
        );
        Ok(Self {
            model: Llama::load(config, &folder.join(WEIGHTS_FILE))?,
            tokenizer,
            state: read_json(&folder.join(STATE_FILE))?,
        })
    }
}

/// The moments of the optimizer in a checkpoint's folder.
pub fn load_moments(folder: &Path, device: &Device) -> Result<HashMap<String, Tensor>> {
    let path = folder.join(MOMENTS_FILE);
    safetensors::load(&path, device).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file of one JSON value.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a file of one JSON value.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
