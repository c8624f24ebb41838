//! A trained model and all that belongs to it, in one folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use candle_trie::{TemperatureState, TokenTrie};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    adapter,
    dataset::DataArguments,
    model::{Llama, LlamaConfig, LoraSettings},
    pretrained::{CONFIG_FILE, Pretrained, SafetensorsWeights, TOKENIZER_FILE, WEIGHTS_FILE},
    prompt::Prompt,
    settings::{LossSettings, ModelSettings, TrainingSettings},
    tokenizer::TextTokenizer,
};

const TRIE_FILE: &str = "trie.safetensors";
const TRAINING_FILE: &str = "training.json";
/// The file of one JSON object a step.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// How a model was trained, and how to ask it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// Where the rows came from.
    pub data: DataArguments,
    /// The wording of prompts.
    pub prompt: Prompt,
    /// The text of the end token, where one was named.
    pub end_token: Option<String>,
    /// The loss.
    pub loss: LossSettings,
    /// The training.
    pub training: TrainingSettings,
    /// The sizes.
    pub model: ModelSettings,
    /// Where the model is a pretrained one with adapters: which, and their sizes.
    #[serde(default)]
    pub adapted: Option<AdaptedRecord>,
    /// The temperature at the end.
    pub temperature: TemperatureState,
}

/// A pretrained model with adapters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdaptedRecord {
    /// Where the pretrained model is.
    pub base: PathBuf,
    /// Size and place of the adapters.
    pub adapter: LoraSettings,
}

/// A trained model with its tokenizer and its trie.
pub struct Checkpoint {
    /// The model.
    pub model: Llama,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// The trie of the catalogue that it was trained on.
    pub trie: TokenTrie,
    /// How it was trained.
    pub record: TrainingRecord,
}

/// Writes a checkpoint into a folder.
pub fn save(
    folder: &Path,
    model: &Llama,
    tokenizer: &TextTokenizer,
    trie: &TokenTrie,
    record: &TrainingRecord,
) -> Result<()> {
    match &record.adapted {
        Some(adapted) => adapter::save(folder, model, &adapted.adapter, &adapted.base)?,
        None => model.save(&folder.join(WEIGHTS_FILE))?,
    }
    tokenizer.save(&folder.join(TOKENIZER_FILE))?;
    trie.save(folder.join(TRIE_FILE))?;
    write_json(&folder.join(CONFIG_FILE), model.config())?;
    write_json(&folder.join(TRAINING_FILE), record)
}

impl Checkpoint {
    /// Reads a checkpoint; parts that do not fit together are an error.
    pub fn load(folder: &Path) -> Result<Self> {
        ensure!(
            folder.is_dir(),
            "{} is no folder with a checkpoint",
            folder.display()
        );
        let config: LlamaConfig = read_json(&folder.join(CONFIG_FILE))?;
        let record: TrainingRecord = read_json(&folder.join(TRAINING_FILE))?;
        let tokenizer =
            TextTokenizer::load(&folder.join(TOKENIZER_FILE), record.end_token.as_deref())?;
        let trie = TokenTrie::load(folder.join(TRIE_FILE))?;
        let most = tokenizer.vocabulary().max(trie.max_token() as usize + 1);
        ensure!(
            most <= config.vocab_size,
            "{}: the tokenizer has {most} tokens, but vocab_size of {CONFIG_FILE} is {}",
            folder.display(),
            config.vocab_size
        );
        let model = match &record.adapted {
            Some(adapted) => {
                let base = Pretrained::open(&adapted.base, record.end_token.as_deref())?;
                let (mut model, _) = base.read()?;
                adapter::load(folder, &mut model)?;
                model
            }
            None => {
                let weights = SafetensorsWeights::open(&[folder.join(WEIGHTS_FILE)])?;
                Llama::of(config, Box::new(weights), DType::F32, false)
                    .with_context(|| folder.display().to_string())?
            }
        };
        Ok(Self {
            model,
            tokenizer,
            trie,
            record,
        })
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
