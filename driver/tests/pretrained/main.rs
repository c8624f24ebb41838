//! Pretrained models and adapters from files: what is read, and what is refused with its name.

mod adapters;
mod folders;
mod gguf;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use msl::{
    model::{Llama, LlamaConfig, NamedTensors},
    precision::Precision,
    pretrained::{self, Pretrained},
    tokenizer::TextTokenizer,
};

fn tokenizer() -> TextTokenizer {
    TextTokenizer::train(["\"The Sea\"", "\"A Wall of Glass\""].into_iter(), 280).unwrap()
}

fn config(tokenizer: &TextTokenizer) -> LlamaConfig {
    LlamaConfig {
        vocab_size: tokenizer.vocabulary(),
        hidden_size: 16,
        intermediate_size: 32,
        tie_word_embeddings: false,
        ..LlamaConfig::default()
    }
}

/// A model in a Hugging Face folder, and its weights.
fn write_model(folder: &Path) -> (LlamaConfig, NamedTensors) {
    let tokenizer = tokenizer();
    let config = config(&tokenizer);
    let mut model = Llama::random(config.clone(), 3, DType::F32, &Device::Cpu).unwrap();
    let weights = model.merged_weights().unwrap();
    pretrained::save(folder, &config, &tokenizer, &weights).unwrap();
    (config, weights)
}

fn read(path: &Path) -> Llama {
    Pretrained::open(path, None)
        .unwrap()
        .read(Precision::F32, &Device::Cpu)
        .unwrap()
        .0
}

fn hidden(model: &Llama) -> Vec<f32> {
    let tokens = Tensor::new(&[[1u32, 70, 200, 5]], &Device::Cpu).unwrap();
    let hidden = model.hidden(&tokens).unwrap();
    hidden.flatten_all().unwrap().to_vec1().unwrap()
}

/// What is said of a model that cannot be read.
fn refusal(path: &Path) -> String {
    let read =
        Pretrained::open(path, None).and_then(|opened| opened.read(Precision::F32, &Device::Cpu));
    format!("{:#}", read.err().expect("this is no model"))
}
