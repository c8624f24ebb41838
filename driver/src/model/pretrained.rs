//! Opens pretrained language models: Hugging Face folders and GGUF files.

mod folder;
mod gguf;
mod gguf_header;
mod gguf_tokenizer;
mod safetensors_weights;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device};

use crate::{
    data::tokenizer::TextTokenizer,
    model::{Llama, LlamaConfig, Weights, precision::Precision},
};

pub use folder::{
    ADAPTER_FILE, CONFIG_FILE, INDEX_FILE, TOKENIZER_FILE, WEIGHTS_FILE, model_name, save,
    weight_map,
};
pub use safetensors_weights::SafetensorsWeights;

/// A pretrained model whose weights have not been read yet.
pub struct Pretrained {
    /// The path of its folder or file.
    path: PathBuf,
    /// Its files of weights, in words.
    described: String,
    /// The configuration of the model.
    pub config: LlamaConfig,
    /// The type of the weights in its files.
    pub stored: DType,
    /// The weights, which are read when they are taken.
    pub weights: Box<dyn Weights>,
    /// The tokenizer.
    pub tokenizer: TextTokenizer,
}

impl Pretrained {
    /// Opens a folder with `config.json`, `tokenizer.json` and `*.safetensors`, or a GGUF file, and says on standard
    /// error which files these are. `end_token` names the token that ends a response; without it, it is the model's own.
    pub fn open(path: &Path, end_token: Option<&str>) -> Result<Self> {
        let opened = match path.is_dir() {
            true => folder::open(path, end_token)?,
            false => gguf::open(path, end_token)?,
        };
        let named = || opened.path.display().to_string();
        opened.config.check().with_context(named)?;
        let rows = opened.config.vocab_size;
        let tokens = opened.tokenizer.vocabulary();
        let unused = match tokens.saturating_sub(rows) {
            0 => String::new(),
            more => format!(
                ", {more} of which the model does not have: no title and no prompt may use them"
            ),
        };
        eprintln!("model: {}; {tokens} tokens{unused}", opened.described);
        Ok(Self {
            tokenizer: opened.tokenizer.for_rows(rows).with_context(named)?,
            ..opened
        })
    }

    /// Reads the weights in the type that `precision` asks for. They are frozen.
    pub fn read(self, precision: Precision, device: &Device) -> Result<(Llama, TextTokenizer)> {
        let dtype = precision.dtype(self.stored, device)?;
        let model = Llama::of(self.config, self.weights, dtype, device, true)
            .with_context(|| self.path.display().to_string())?;
        Ok((model, self.tokenizer))
    }
}

/// Describes files of weights: their names, and how many tensors of which types they hold.
fn described<'a>(
    mut files: impl Iterator<Item = &'a Path>,
    kinds: impl Iterator<Item = String>,
) -> String {
    let first = files.next().unwrap_or(Path::new("")).display().to_string();
    let files = match files.last() {
        Some(last) => format!("{first} to {}", last.display()),
        None => first,
    };
    let (mut names, mut tensors) = (Vec::new(), 0);
    for kind in kinds {
        tensors += 1;
        if !names.contains(&kind) {
            names.push(kind);
        }
    }
    format!("{files}, {tensors} tensors in {}", names.join(", "))
}
