//! Reads and writes `adapter_config.json`. Keys of PEFT that are not known, and values that do not mean plain LoRA, are
//! refused.

use std::{collections::BTreeMap, ops::Range, path::Path};

use anyhow::{Context, Result, bail, ensure};
use fancy_regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CONFIG_FILE;
use crate::{
    io::json::read_json,
    model::{LoraSettings, TARGETS, is_end_of},
};

/// The keys of `adapter_config.json` that are used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Always `LORA`.
    pub peft_type: String,
    /// Either `CAUSAL_LM` or absent.
    pub task_type: Option<String>,
    /// The path or the name of the model that the adapters belong to.
    pub base_model_name_or_path: Option<String>,
    pub(super) r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Modules,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exclude_modules: Option<Modules>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layers_to_transform: Option<Layers>,
    /// Whether α is divided by the square root of the rank, and not by the rank.
    #[serde(default, skip_serializing_if = "is_false")]
    use_rslora: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trainable_token_indices: Option<TokenIndices>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// A choice of modules of a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Modules {
    /// `all-linear`, or a regular expression that matches their whole paths.
    Expression(String),
    /// Their paths, or the ends of these.
    Names(Vec<String>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Layers {
    One(usize),
    Several(Vec<usize>),
}

/// Tokens whose rows are trained.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum TokenIndices {
    /// Those of the embedding, and of the head where that is the embedding.
    OfEmbedding(Vec<usize>),
    /// Those of each module.
    OfModules(BTreeMap<String, Vec<usize>>),
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Keys that do not change what trained adapters compute.
const WITHOUT_EFFECT: [&str; 9] = [
    "auto_mapping",
    "eva_config",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "ensure_weight_tying",
];

/// Values of `init_lora_weights` that leave the model's own weights as they are. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA
/// take out of them what the adapters begin with.
const PLAIN_BEGINNINGS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Modules that PEFT gives adapters to, and that get none here.
const OTHER_MODULES: [&str; 2] = [HEAD_MODULE, "model.embed_tokens"];

/// PEFT's names for the modules whose rows of added tokens are trained.
const EMBEDDING_MODULE: &str = "embed_tokens";
const HEAD_MODULE: &str = "lm_head";

impl AdapterConfig {
    /// Builds the configuration of adapters to a model, and of the tokens that were `added` to it.
    pub fn new(
        settings: &LoraSettings,
        added: Option<Range<usize>>,
        tied: bool,
        base: &Path,
    ) -> Self {
        let indices = |tokens: Range<usize>| match tied {
            true => TokenIndices::OfEmbedding(tokens.collect()),
            false => TokenIndices::OfModules(
                [EMBEDDING_MODULE, HEAD_MODULE]
                    .map(|module| (module.to_owned(), tokens.clone().collect()))
                    .into(),
            ),
        };
        Self {
            trainable_token_indices: added.map(indices),
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base.display().to_string()),
            r: settings.rank,
            lora_alpha: settings.alpha,
            lora_dropout: settings.dropout,
            target_modules: Modules::Names(settings.targets.clone()),
            exclude_modules: None,
            layers_to_transform: None,
            use_rslora: false,
            others: Map::from_iter([
                ("bias".into(), "none".into()),
                ("fan_in_fan_out".into(), false.into()),
                ("inference_mode".into(), true.into()),
            ]),
        }
    }

    /// Reads the configuration of a folder; kinds of adapter that are not known are an error.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        let named = || path.display().to_string();
        let values: Map<String, Value> = read_json(&path)?;
        check_values(&values).with_context(named)?;
        let config: Self = serde_json::from_value(values.into()).with_context(named)?;
        ensure!(config.r > 0, "{}: r is 0", path.display());
        Ok(config)
    }

    /// Returns the size and the place of the adapters in a model that has linear layers at these paths.
    pub fn settings(&self, paths: &[String]) -> Result<LoraSettings> {
        let scale = match self.use_rslora {
            true => (self.r as f64).sqrt(),
            false => 1.0,
        };
        let settings = LoraSettings {
            rank: self.r,
            alpha: self.lora_alpha * scale,
            dropout: self.lora_dropout,
            targets: self.targets(paths)?,
        };
        settings.check()?;
        Ok(settings)
    }

    /// Returns the tokens that were added to the model, whose rows are trained.
    pub fn added_tokens(&self) -> Result<Option<Range<usize>>> {
        let Some(indices) = &self.trainable_token_indices else {
            return Ok(None);
        };
        let modules: Vec<(&str, &[usize])> = match indices {
            TokenIndices::OfEmbedding(tokens) => vec![(EMBEDDING_MODULE, tokens)],
            TokenIndices::OfModules(modules) => (modules.iter())
                .map(|(module, tokens)| (module.as_str(), tokens.as_slice()))
                .collect(),
        };
        let mut added: Option<(&str, Range<usize>)> = None;
        for (module, tokens) in modules {
            ensure!(
                module.ends_with(EMBEDDING_MODULE) || module.ends_with(HEAD_MODULE),
                "trainable_token_indices names the module {module}, expected {EMBEDDING_MODULE} or {HEAD_MODULE}"
            );
            let (Some(&first), Some(&last)) = (tokens.first(), tokens.last()) else {
                continue;
            };
            let gap = tokens
                .windows(2)
                .find(|pair| pair[0].checked_add(1) != Some(pair[1]));
            if let Some(pair) = gap {
                bail!(
                    "trainable_token_indices has {} after {} for {module}, expected tokens that were added to a model, one \
                     after another",
                    pair[1],
                    pair[0]
                );
            }
            let tokens = first..last.saturating_add(1);
            match &added {
                Some((other, before)) => ensure!(
                    *before == tokens,
                    "trainable_token_indices has the tokens {tokens:?} for {module} and {before:?} for {other}, expected \
                     the same ones"
                ),
                None => added = Some((module, tokens)),
            }
        }
        Ok(added.map(|(_, tokens)| tokens))
    }

    /// Returns the layers that get adapters: by their short names where these are meant in every layer, else by their
    /// paths.
    fn targets(&self, paths: &[String]) -> Result<Vec<String>> {
        let excluded = self.exclude_modules.as_ref().filter(|it| !it.is_empty());
        let layers: Option<&[usize]> = match &self.layers_to_transform {
            Some(Layers::One(layer)) => Some(std::slice::from_ref(layer)),
            Some(Layers::Several(layers)) if !layers.is_empty() => Some(layers),
            _ => None,
        };
        if let (Modules::Names(names), None, None) = (&self.target_modules, excluded, layers)
            && names.iter().all(|name| TARGETS.contains(&name.as_str()))
        {
            return Ok(names.clone());
        }
        let targeted = self.target_modules.matcher("target_modules")?;
        let excluded = excluded
            .map(|modules| modules.matcher("exclude_modules"))
            .transpose()?;
        let wanted = |path: &str| -> Result<bool> {
            let excluded = match &excluded {
                Some(excluded) => excluded(path)?,
                None => false,
            };
            Ok(!excluded && targeted(path)?)
        };
        for other in OTHER_MODULES {
            ensure!(
                layers.is_some() || self.target_modules.is_all_linear() || !wanted(other)?,
                "target_modules asks for adapters of {other}, which is not supported"
            );
        }
        let mut targets = Vec::new();
        for path in paths {
            let in_layers = layers
                .is_none_or(|layers| layer_of(path).is_some_and(|layer| layers.contains(&layer)));
            if in_layers && wanted(path)? {
                targets.push(path.clone());
            }
        }
        ensure!(
            !targets.is_empty(),
            "target_modules, exclude_modules and layers_to_transform leave no layer of the model"
        );
        Ok(targets)
    }
}

/// Returns the number of the layer that a module is in.
fn layer_of(path: &str) -> Option<usize> {
    path.strip_prefix("model.layers.")?
        .split('.')
        .next()?
        .parse()
        .ok()
}

impl Modules {
    fn is_empty(&self) -> bool {
        match self {
            Self::Expression(expression) => expression.is_empty(),
            Self::Names(names) => names.is_empty(),
        }
    }

    fn is_all_linear(&self) -> bool {
        matches!(self, Self::Expression(expression) if expression.eq_ignore_ascii_case("all-linear"))
    }

    /// Returns the test, by PEFT's rule, of whether a module gets an adapter.
    fn matcher(&self, key: &'static str) -> Result<impl Fn(&str) -> Result<bool>> {
        let expression = match self {
            Self::Expression(expression) if !self.is_all_linear() => {
                let whole = format!(r"\A(?:{expression})\z");
                let regex = Regex::new(&whole)
                    .with_context(|| format!("{key} is {expression:?}, which cannot be read"))?;
                Some(regex)
            }
            _ => None,
        };
        Ok(move |path: &str| {
            Ok(match (self, &expression) {
                (Self::Names(names), _) => names.iter().any(|name| is_end_of(name, path)),
                (_, Some(expression)) => expression.is_match(path).context(key)?,
                (_, None) => true,
            })
        })
    }
}

/// Refuses keys and values that plain LoRA does not have. What is not known, for PEFT grows, must be switched off.
fn check_values(values: &Map<String, Value>) -> Result<()> {
    for (key, value) in values {
        let known = match key.as_str() {
            "base_model_name_or_path"
            | "r"
            | "lora_alpha"
            | "lora_dropout"
            | "target_modules"
            | "exclude_modules"
            | "layers_to_transform"
            | "use_rslora"
            | "trainable_token_indices" => true,
            "peft_type" => value == "LORA",
            "task_type" => value.is_null() || value == "CAUSAL_LM" || value == "FEATURE_EXTRACTION",
            "bias" => value == "none",
            "layers_pattern" => value == "layers" || *value == Value::from(["layers"].as_slice()),
            "init_lora_weights" => match value {
                Value::String(beginning) => PLAIN_BEGINNINGS.contains(&beginning.as_str()),
                _ => true,
            },
            other => WITHOUT_EFFECT.contains(&other),
        };
        if known || is_off(value) {
            continue;
        }
        match key.as_str() {
            "init_lora_weights" => bail!(
                "init_lora_weights is {value}, by which the model's own weights were changed before the training: save the \
                 adapters with PEFT's path_initial_model_for_weight_conversion"
            ),
            _ => bail!("{key} is {value}, which is not supported"),
        }
    }
    Ok(())
}

/// Tells whether a value turns its key off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(members) => members.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}
