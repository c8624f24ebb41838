//! Language models that others have trained: a Hugging Face folder or a GGUF file.

mod folder;
mod gguf;
mod gguf_tokenizer;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};

use crate::{
    model::{Llama, LlamaConfig, Weights},
    precision::Precision,
    tokenizer::TextTokenizer,
};

pub use folder::{CONFIG_FILE, SafetensorsWeights, TOKENIZER_FILE, WEIGHTS_FILE, save};

/// A model that is ready to be read.
pub struct Pretrained {
    /// The sizes.
    pub config: LlamaConfig,
    /// The type that its files have it in.
    pub stored: DType,
    /// The weights, not read yet.
    pub weights: Box<dyn Weights>,
    /// The tokenizer.
    pub tokenizer: TextTokenizer,
}

impl Pretrained {
    /// Opens a folder with `config.json`, `tokenizer.json` and `*.safetensors`, or a GGUF file. `end_token` names the
    /// token that ends a response; without it, it is the model's own.
    pub fn open(path: &Path, end_token: Option<&str>) -> Result<Self> {
        let opened = if path.is_dir() {
            folder::open(path, end_token)
        } else {
            gguf::open(path, end_token)
        };
        let opened = opened.with_context(|| path.display().to_string())?;
        opened
            .config
            .check()
            .with_context(|| path.display().to_string())?;
        let tokens = opened.tokenizer.vocabulary();
        ensure!(
            tokens <= opened.config.vocab_size,
            "{}: the tokenizer has {tokens} tokens, but the model only {}",
            path.display(),
            opened.config.vocab_size
        );
        Ok(opened)
    }

    /// Reads the weights, whatever type they have. They are frozen.
    pub fn read(self, precision: Precision, device: &Device) -> Result<(Llama, TextTokenizer)> {
        let dtype = precision.dtype(self.stored, device)?;
        let model = Llama::of(self.config, self.weights, dtype, device, true)?;
        Ok((model, self.tokenizer))
    }
}
