//! Defines the options of the sizes of a model that is trained from scratch.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{EndTokens, LlamaConfig};

/// The sizes of a model that is trained from scratch.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSettings {
    /// Hidden size of the model
    #[arg(long, default_value_t = 128, value_name = "WIDTH")]
    pub hidden: usize,

    /// Hidden size of the feed-forward blocks
    #[arg(long, default_value_t = 256, value_name = "WIDTH")]
    pub intermediate: usize,

    /// Number of layers
    #[arg(long, default_value_t = 2)]
    pub layers: usize,

    /// Number of attention heads
    #[arg(long, default_value_t = 4)]
    pub heads: usize,

    /// Number of key and value heads, each shared by several attention heads
    #[arg(long, default_value_t = 2, value_name = "HEADS")]
    pub key_value_heads: usize,
}

impl ModelSettings {
    /// Builds the configuration of a model for a tokenizer of so many tokens.
    pub fn config(&self, vocabulary: usize, end_token: u32) -> LlamaConfig {
        LlamaConfig {
            vocab_size: vocabulary,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: Some(self.key_value_heads),
            eos_token_id: Some(EndTokens::One(end_token)),
            ..LlamaConfig::default()
        }
    }
}
