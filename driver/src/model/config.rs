use anyhow::{Result, bail, ensure};
use candle_core::DType;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The kinds of model that this driver knows: Llama's, and those that add to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, TinyLlama and SmolLM2.
    Llama,
    /// Qwen 2 and 2.5, where the projections of queries, keys and values have biases.
    Qwen2,
    /// Qwen 3, where queries and keys are normed head by head, and a head has a width of its own.
    Qwen3,
}

/// The configuration of a model, under the keys of a Hugging Face `config.json`. Keys that are not needed here are kept
/// and written again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    /// Class names of transformers, such as `["LlamaForCausalLM"]`.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// The kind of model: `llama`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads, each of which serves the same number of query heads. `None` means as many as query
    /// heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// Width of one head. `None` means the hidden size divided by the number of query heads (128 in Qwen 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Activation of the feed-forward gate. Only `silu` is supported.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// What is added to the mean square before its root is taken.
    #[serde(default = "default_epsilon")]
    pub rms_norm_eps: f64,
    /// The base of the rotary wavelengths, where `rope_parameters` does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// The scaling of the rotary wavelengths, as transformers before version 5 writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeParameters>,
    /// The base and the scaling of the rotary wavelengths, as transformers writes them from version 5 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<RopeParameters>,
    /// The longest sequence that the model is meant for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// The token or tokens that end a response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<EndTokens>,
    /// Whether Llama's attention has biases, which is not supported.
    #[serde(default, skip_serializing_if = "is_false")]
    pub attention_bias: bool,
    /// Whether Llama's feed-forward block has biases, which is not supported.
    #[serde(default, skip_serializing_if = "is_false")]
    pub mlp_bias: bool,
    /// Whether Qwen's attention sees only the last tokens, which is not supported.
    #[serde(default, skip_serializing_if = "is_false")]
    pub use_sliding_window: bool,
    /// All other keys, with their values.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// End tokens: one, or several, of which the first is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EndTokens {
    /// One end token.
    One(u32),
    /// Several end tokens.
    Several(Vec<u32>),
}

/// The base and the scaling of the rotary wavelengths.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RopeParameters {
    /// The kind of scaling: `default` (none), `linear` or `llama3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_type: Option<String>,
    /// The older name of `rope_type`. Some files have both, and `rope_type` counts then.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub older_type: Option<String>,
    /// The base of the wavelengths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// The factor by which wavelengths become longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// The ratio of the original length to a wavelength below which `llama3` makes the wavelength longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_freq_factor: Option<f64>,
    /// The ratio of the original length to a wavelength above which `llama3` keeps the wavelength.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_freq_factor: Option<f64>,
    /// The length, in tokens, that a `llama3` model was first trained for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<f64>,
}

fn silu() -> String {
    "silu".into()
}

/// Returns what transformers takes for all three kinds of model where config.json does not say.
fn default_epsilon() -> f64 {
    1e-6
}

fn is_false(value: &bool) -> bool {
    !value
}

const DEFAULT_THETA: f64 = 10_000.0;
/// The key of the share of a head's elements that are rotated.
const PARTIAL_ROTARY: &str = "partial_rotary_factor";
/// The largest of all sizes: products of two of them fit in 64 bits.
const LARGEST_SIZE: usize = 1 << 31;
/// More layers than any model has. Their memory is allocated layer by layer, which a machine may not survive.
const MOST_LAYERS: usize = 4_096;
/// The width of a head of Qwen 3 where config.json does not say.
const QWEN3_HEAD_WIDTH: usize = 128;

impl Default for LlamaConfig {
    /// Returns Llama's settings, with sizes of a model that learns a little on a CPU.
    fn default() -> Self {
        Self {
            architectures: vec!["LlamaForCausalLM".into()],
            model_type: "llama".into(),
            vocab_size: 4_096,
            hidden_size: 128,
            intermediate_size: 256,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: Some(2),
            head_dim: None,
            hidden_act: "silu".into(),
            rms_norm_eps: 1e-5,
            rope_theta: Some(DEFAULT_THETA),
            rope_scaling: None,
            rope_parameters: None,
            max_position_embeddings: 2_048,
            tie_word_embeddings: true,
            eos_token_id: Some(EndTokens::One(0)),
            attention_bias: false,
            mlp_bias: false,
            use_sliding_window: false,
            others: Map::new(),
        }
    }
}

impl LlamaConfig {
    /// Returns the kind of model, or an error for one that is not known.
    pub fn architecture(&self) -> Result<Architecture> {
        match self.model_type.as_str() {
            "llama" => Ok(Architecture::Llama),
            "qwen2" => Ok(Architecture::Qwen2),
            "qwen3" => Ok(Architecture::Qwen3),
            other => bail!("model_type is {other:?}, and this driver knows llama, qwen2 and qwen3"),
        }
    }

    /// Returns the width of one head.
    pub fn head_width(&self) -> usize {
        match self.head_dim {
            Some(width) => width,
            None if self.model_type == "qwen3" => QWEN3_HEAD_WIDTH,
            None => self.hidden_size / self.num_attention_heads.max(1),
        }
    }

    /// Returns the number of key and value heads.
    pub fn key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Returns the end tokens, the one to write first.
    pub fn end_tokens(&self) -> &[u32] {
        match &self.eos_token_id {
            None => &[],
            Some(EndTokens::One(token)) => std::slice::from_ref(token),
            Some(EndTokens::Several(tokens)) => tokens,
        }
    }

    fn rotary_scaling(&self) -> Option<&RopeParameters> {
        self.rope_parameters.as_ref().or(self.rope_scaling.as_ref())
    }

    /// Returns the radians by which each pair of a head's elements turns from one position to the next.
    pub fn rotary_frequencies(&self) -> Result<Vec<f64>> {
        let scaling = self.rotary_scaling();
        let theta = scaling
            .and_then(|scaling| scaling.rope_theta)
            .or(self.rope_theta)
            .unwrap_or(DEFAULT_THETA);
        let pairs = self.head_width() / 2;
        let mut frequencies: Vec<f64> = (0..pairs)
            .map(|pair| theta.powf(-(pair as f64) / pairs as f64))
            .collect();
        if let Some(scaling) = scaling {
            scaling.scale(&mut frequencies)?;
        }
        Ok(frequencies)
    }

    /// Refuses sizes that no model can have, and kinds of model that this driver does not know.
    pub fn check(&self) -> Result<()> {
        self.architecture()?;
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.key_value_heads()),
            ("the width of a head", self.head_width()),
        ];
        for (name, size) in sizes {
            ensure!(
                (1..=LARGEST_SIZE).contains(&size),
                "{name} is {size}, expected a number from 1 to {LARGEST_SIZE}"
            );
        }
        ensure!(
            self.num_hidden_layers <= MOST_LAYERS,
            "num_hidden_layers is {}, expected at most {MOST_LAYERS}",
            self.num_hidden_layers
        );
        ensure!(
            self.head_dim.is_some() || self.hidden_size.is_multiple_of(self.num_attention_heads),
            "a hidden size of {} does not divide into {} heads",
            self.hidden_size,
            self.num_attention_heads
        );
        ensure!(
            self.head_width().is_multiple_of(2),
            "a head has a width of {}, which is not even",
            self.head_width()
        );
        ensure!(
            self.num_attention_heads
                .is_multiple_of(self.key_value_heads()),
            "{} query heads cannot share {} key and value heads evenly",
            self.num_attention_heads,
            self.key_value_heads()
        );
        ensure!(
            self.hidden_act == "silu",
            "hidden_act is {:?}, expected \"silu\"",
            self.hidden_act
        );
        for (name, asked) in [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            ("use_sliding_window", self.use_sliding_window),
        ] {
            ensure!(!asked, "{name} is true, which is not supported");
        }
        let turned = self.others.get(PARTIAL_ROTARY);
        ensure!(
            turned.is_none_or(|share| share.is_null() || share.as_f64() == Some(1.0)),
            "{PARTIAL_ROTARY} is {}, which is not supported",
            turned.unwrap_or(&Value::Null)
        );
        match self.rotary_scaling() {
            Some(scaling) => scaling.scale(&mut []),
            None => Ok(()),
        }
    }

    /// Returns the same configuration, with the type in which its weights are written.
    pub fn of_dtype(mut self, dtype: DType) -> Self {
        let name = match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            DType::F64 => "float64",
            _ => "float32",
        };
        // Under the name that transformers has from version 5 on, or the one that all versions read.
        let key = match self.others.contains_key("dtype") {
            true => "dtype",
            false => "torch_dtype",
        };
        self.others.insert(key.into(), name.into());
        self
    }
}

impl RopeParameters {
    fn scale(&self, frequencies: &mut [f64]) -> Result<()> {
        let positive = |name: &str, value: Option<f64>| match value {
            Some(value) if value > 0.0 && value.is_finite() => Ok(value),
            Some(value) => {
                bail!("{name} of the rotary embedding is {value}, expected a positive number")
            }
            None => bail!("the rotary embedding has no {name}"),
        };
        let kind = self.rope_type.as_deref().or(self.older_type.as_deref());
        match kind.unwrap_or("default") {
            "default" => {}
            "linear" => {
                let factor = positive("factor", self.factor)?;
                frequencies
                    .iter_mut()
                    .for_each(|frequency| *frequency /= factor);
            }
            "llama3" => {
                let factor = positive("factor", self.factor)?;
                let low = positive("low_freq_factor", self.low_freq_factor)?;
                let high = positive("high_freq_factor", self.high_freq_factor)?;
                let length = positive(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?;
                ensure!(
                    high > low,
                    "high_freq_factor {high} of the rotary embedding is not above low_freq_factor {low}"
                );
                for frequency in frequencies {
                    let turns = length * *frequency / std::f64::consts::TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *frequency *= kept + (1.0 - kept) / factor;
                }
            }
            other => {
                bail!("rope_type is {other:?}, and this driver knows default, linear and llama3")
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_layers_than_a_machine_has_memory_for_are_refused_before_it_is_taken() {
        let config = |num_hidden_layers| LlamaConfig {
            num_hidden_layers,
            ..LlamaConfig::default()
        };
        config(MOST_LAYERS).check().unwrap();
        let refusal = config(1_000_000_000).check().unwrap_err().to_string();
        assert!(refusal.contains("num_hidden_layers"), "{refusal}");
    }

    #[test]
    fn the_kind_of_scaling_is_read_under_either_name_and_both() {
        for (written, expected) in [
            (r#"{"type": "linear", "factor": 4.0}"#, 0.25),
            (r#"{"rope_type": "linear", "factor": 4.0}"#, 0.25),
            (
                r#"{"type": "linear", "rope_type": "linear", "factor": 4.0}"#,
                0.25,
            ),
            (
                r#"{"type": "linear", "rope_type": "default", "factor": 4.0}"#,
                1.0,
            ),
        ] {
            let scaling: RopeParameters = serde_json::from_str(written).unwrap();
            let mut frequencies = [1.0];
            scaling.scale(&mut frequencies).unwrap();
            assert_eq!(frequencies, [expected], "{written}");
            let again = serde_json::to_string(&scaling).unwrap();
            assert_eq!(
                serde_json::from_str::<RopeParameters>(&again).unwrap(),
                scaling
            );
        }
    }
}
