//! Saves and loads checkpoints: a model at one step, with all that its training needs to continue. The folder is one
//! that Hugging Face's tools read.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, safetensors};
use candle_trie::{Temperature, TemperatureState};
use serde::{Deserialize, Serialize};

use crate::{
    data::tokenizer::{TextTokenizer, TokenizerArguments},
    io::{
        binary,
        json::{read_json, write_json},
    },
    model::{
        Llama, LlamaConfig, adapter,
        precision::Precision,
        pretrained::{CONFIG_FILE, SafetensorsWeights, TOKENIZER_FILE, WEIGHTS_FILE, model_name},
    },
    train::optimizer::AdamW,
};

/// The file of the optimizer's moments.
pub const MOMENTS_FILE: &str = "optimizer.safetensors";
/// The file of the state of the training.
pub const STATE_FILE: &str = "state.json";

/// The state of a training, besides its weights and the moments of its optimizer. The order of the rows and the dropout
/// follow from the seed and the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// Number of steps taken.
    pub step: usize,
    /// The temperature after these steps.
    pub temperature: TemperatureState,
    /// Seconds of training.
    pub seconds: f64,
    /// The checkpoint that was best on the validation rows.
    pub best: Option<Best>,
}

/// The best checkpoint on the validation rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its step.
    pub step: usize,
    /// Its mean item NLL on the validation rows.
    pub item_nll: f64,
}

impl TrainingState {
    /// Reads the state of a checkpoint's folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE_FILE);
        let state: Self = read_json(&path)?;
        // One that no loss can have is refused here, where the file is known.
        (Temperature::fixed(1.0).restore(state.temperature))
            .with_context(|| path.display().to_string())?;
        Ok(state)
    }
}

/// A checkpoint in memory.
pub struct Checkpoint {
    /// The model.
    pub model: Llama,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// The state of its training.
    pub state: TrainingState,
}

/// Writes a checkpoint into a folder. `base` is where a pretrained model is whose adapters are trained.
pub fn save(
    folder: &Path,
    model: &Llama,
    base: Option<&Path>,
    tokenizer: &TextTokenizer,
    optimizer: &AdamW,
    state: &TrainingState,
) -> Result<()> {
    match base {
        Some(base) => adapter::save(folder, model, base)?,
        None => model.save(&folder.join(WEIGHTS_FILE))?,
    }
    write_json(&folder.join(CONFIG_FILE), model.config())?;
    tokenizer.save(&folder.join(TOKENIZER_FILE))?;
    let moments = folder.join(MOMENTS_FILE);
    safetensors::save(&optimizer.moments(), &moments)
        .with_context(|| format!("cannot write {}", moments.display()))?;
    write_json(&folder.join(STATE_FILE), state)
}

impl Checkpoint {
    /// Reads a checkpoint. Parts that do not fit together are an error. `arguments` say how its tokenizer was used in
    /// training, and `base` is where the pretrained model is, if it has adapters.
    pub fn load(
        folder: &Path,
        arguments: &TokenizerArguments,
        base: Option<&Path>,
        precision: Precision,
        device: &Device,
    ) -> Result<Self> {
        let config: LlamaConfig = read_json(&folder.join(CONFIG_FILE))?;
        let end_token = arguments.end_token.as_deref();
        let path = folder.join(TOKENIZER_FILE);
        let mut tokenizer = TextTokenizer::load(&path, end_token)?;
        if !arguments.begins {
            tokenizer = tokenizer.without_begin();
        }
        let tokenizer =
            (tokenizer.for_rows(config.vocab_size)).with_context(|| path.display().to_string())?;
        let model = match base {
            Some(base) => adapter::load_onto(folder, base, end_token, precision, device)?,
            None => {
                let weights = SafetensorsWeights::open(&[folder.join(WEIGHTS_FILE)], model_name)?;
                eprintln!("model: {}", weights.described());
                let dtype = precision.dtype(DType::F32, device)?;
                Llama::of(config, Box::new(weights), dtype, device, false)
                    .with_context(|| folder.display().to_string())?
            }
        };
        Ok(Self {
            model,
            tokenizer,
            state: TrainingState::read(folder)?,
        })
    }
}

/// Reads the moments of the optimizer in a checkpoint's folder.
pub fn load_moments(folder: &Path, device: &Device) -> Result<HashMap<String, Tensor>> {
    let path = folder.join(MOMENTS_FILE);
    binary::open(&path)?;
    safetensors::load(&path, device).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_temperature_that_no_loss_can_have_is_refused_with_the_file_that_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let read = |temperature: f64| {
            let state = TrainingState {
                step: 3,
                temperature: TemperatureState {
                    value: temperature,
                    step: 3,
                },
                seconds: 1.5,
                best: None,
            };
            write_json(&folder.path().join(STATE_FILE), &state).unwrap();
            TrainingState::read(folder.path()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(read(1.5).unwrap().temperature.value, 1.5);
        for temperature in [0.0, -1.0, 1e300] {
            let refused = read(temperature).unwrap_err();
            assert!(
                refused.contains(STATE_FILE) && refused.contains("must be positive"),
                "{refused}"
            );
        }
        fs::remove_file(folder.path().join(STATE_FILE)).unwrap();
        let refused = TrainingState::read(folder.path()).unwrap_err();
        assert!(format!("{refused:#}").contains(STATE_FILE));
    }
}
