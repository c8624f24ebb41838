use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The sizes of a model, under the keys of a Hugging Face `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    /// Always `["LlamaForCausalLM"]`.
    pub architectures: Vec<String>,
    /// Always `llama`.
    pub model_type: String,
    /// Tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves the same number of query heads.
    pub num_key_value_heads: usize,
    /// Activation of the feed-forward gate; always `silu`.
    pub hidden_act: String,
    /// What is added to the mean square before its root is taken.
    pub rms_norm_eps: f64,
    /// The base of the rotary wavelengths.
    pub rope_theta: f64,
    /// The longest sequence the model is meant for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding; always, here.
    pub tie_word_embeddings: bool,
    /// The token that ends a response.
    pub eos_token_id: u32,
}

impl Default for LlamaConfig {
    /// Llama's settings, with sizes of a model that learns a little on a processor.
    fn default() -> Self {
        Self {
            architectures: vec!["LlamaForCausalLM".into()],
            model_type: "llama".into(),
            vocab_size: 4_096,
            hidden_size: 128,
            intermediate_size: 256,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            hidden_act: "silu".into(),
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            max_position_embeddings: 2_048,
            tie_word_embeddings: true,
            eos_token_id: 0,
        }
    }
}

impl LlamaConfig {
    /// Width of one head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Refuses sizes that no model can have, and kinds of model that this driver does not know.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
        ];
        for (name, size) in sizes {
            ensure!(size > 0, "{name} is 0");
        }
        ensure!(
            self.hidden_size.is_multiple_of(self.num_attention_heads)
                && self.head_size().is_multiple_of(2),
            "a hidden size of {} does not divide into {} heads of even width",
            self.hidden_size,
            self.num_attention_heads
        );
        ensure!(
            self.num_attention_heads
                .is_multiple_of(self.num_key_value_heads),
            "{} query heads cannot share {} key and value heads evenly",
            self.num_attention_heads,
            self.num_key_value_heads
        );
        ensure!(
            self.model_type == "llama",
            "model_type is {:?}, expected \"llama\"",
            self.model_type
        );
        ensure!(
            self.hidden_act == "silu",
            "hidden_act is {:?}, expected \"silu\"",
            self.hidden_act
        );
        ensure!(
            self.tie_word_embeddings,
            "tie_word_embeddings is false, and an untied head is not supported"
        );
        Ok(())
    }
}
