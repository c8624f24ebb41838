//! Adapters on disk, as PEFT keeps them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor, safetensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    json::{read_json, write_json},
    model::{Llama, LoraSettings},
    precision::Precision,
    pretrained::Pretrained,
};

/// PEFT's name of the file of sizes.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// PEFT's name of the file of weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of a model's layers.
const PREFIX: &str = "base_model.model.";

/// What `adapter_config.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Always `LORA`.
    pub peft_type: String,
    /// Always `CAUSAL_LM`.
    pub task_type: Option<String>,
    /// Where the model is that the adapters belong to.
    pub base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Vec<String>,
    #[serde(default = "none")]
    bias: String,
    #[serde(flatten)]
    others: Map<String, Value>,
}

fn none() -> String {
    "none".into()
}

impl AdapterConfig {
    /// The configuration of adapters to a model.
    pub fn new(settings: &LoraSettings, base: &Path) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base.display().to_string()),
            r: settings.rank,
            lora_alpha: settings.alpha,
            lora_dropout: settings.dropout,
            target_modules: settings.targets.clone(),
            bias: none(),
            others: Map::from_iter([
                ("fan_in_fan_out".into(), false.into()),
                ("inference_mode".into(), true.into()),
            ]),
        }
    }

    /// Reads the configuration of a folder; kinds of adapter that are not known are an error.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        let config: Self = read_json(&path)?;
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.peft_type == "LORA" && self.bias == "none",
            "expected adapters of type \"LORA\" with the bias \"none\", got {:?} and {:?}",
            self.peft_type,
            self.bias
        );
        for unknown in [
            "use_rslora",
            "use_dora",
            "fan_in_fan_out",
            "modules_to_save",
            "layers_to_transform",
            "rank_pattern",
            "alpha_pattern",
            "lora_bias",
        ] {
            let value = self.others.get(unknown).unwrap_or(&Value::Null);
            let unused = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            ensure!(unused, "{unknown} is {value}, which is not supported");
        }
        self.settings().check()
    }

    /// Size and place of the adapters.
    pub fn settings(&self) -> LoraSettings {
        LoraSettings {
            rank: self.r,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            targets: self.target_modules.clone(),
        }
    }
}

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
        &AdapterConfig::new(settings, base),
    )
}

/// Whether a folder has adapters.
pub fn is_in(folder: &Path) -> bool {
    folder.join(CONFIG_FILE).is_file()
}

/// Gives a model the adapters of a folder.
pub fn load(folder: &Path, model: &mut Llama) -> Result<()> {
    let config = AdapterConfig::load(folder)?;
    model
        .adapt(&config.settings(), 0)
        .with_context(|| folder.display().to_string())?;
    let path = folder.join(WEIGHTS_FILE);
    let tensors = safetensors::load(&path, model.head().device())
        .with_context(|| format!("cannot read the adapters {}", path.display()))?;
    set(model, tensors).with_context(|| path.display().to_string())
}

/// Where the model is that a folder's adapters belong to, by their `adapter_config.json`.
pub fn base(folder: &Path) -> Result<PathBuf> {
    let base = AdapterConfig::load(folder)?.base_model_name_or_path;
    base.map(PathBuf::from).with_context(|| {
        format!(
            "{} does not name a model",
            folder.join(CONFIG_FILE).display()
        )
    })
}

/// The model that a folder's adapters belong to, with them. `end_token` is that of [`Pretrained::open`].
pub fn load_with_base(
    folder: &Path,
    end_token: Option<&str>,
    precision: Precision,
    device: &Device,
) -> Result<Llama> {
    load_onto(folder, &base(folder)?, end_token, precision, device)
}

/// As [`load_with_base`], with the model at `base`, wherever the folder says that it is.
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

fn set(model: &Llama, mut tensors: HashMap<String, Tensor>) -> Result<()> {
    for (name, weight) in model.parameters() {
        let name = format!("{PREFIX}{name}");
        let Some(tensor) = tensors.remove(&name) else {
            bail!("there is no tensor {name}");
        };
        ensure!(
            tensor.dims() == weight.dims(),
            "{name} has the shape {:?}, where the model and {CONFIG_FILE} ask for {:?}",
            tensor.dims(),
            weight.dims()
        );
        weight.set(&tensor.to_dtype(weight.dtype())?)?;
    }
    if let Some(name) = tensors.keys().min() {
        bail!("the model has no place for the tensor {name}");
    }
    Ok(())
}
