//! Small models of random weights, as a Hugging Face folder and as a GGUF file.

use std::{
    fs,
    fs::File,
    path::{Path, PathBuf},
};

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file, gguf_file::Value},
};
use msl::{
    data::tokenizer::TextTokenizer,
    model::{Llama, LlamaConfig, NamedTensors, pretrained},
};

pub fn tokenizer() -> TextTokenizer {
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
pub fn write_model(folder: &Path) -> (LlamaConfig, NamedTensors) {
    let tokenizer = tokenizer();
    let config = config(&tokenizer);
    let mut model = Llama::random(config.clone(), 3, DType::F32, &Device::Cpu).unwrap();
    let weights = model.merged_weights().unwrap();
    pretrained::save(folder, &config, &tokenizer, &weights).unwrap();
    (config, weights)
}

pub type Metadata = Vec<(&'static str, Value)>;
pub type Tensors = Vec<(String, QTensor)>;

pub fn text(value: &str) -> Value {
    Value::String(value.into())
}

/// As llama.cpp's converter moves the rows of queries and keys.
fn permuted(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = weight.dims2().unwrap();
    let halves = weight
        .reshape((heads, 2, rows / heads / 2, columns))
        .unwrap();
    let pairs = halves.transpose(1, 2).unwrap().contiguous().unwrap();
    pairs.reshape((rows, columns)).unwrap()
}

/// A model in a Hugging Face folder, as llama.cpp's converter would write it.
pub fn converted(folder: &Path) -> (Metadata, Tensors) {
    let (config, weights) = write_model(folder);
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let stored: Tensors = (weights.iter())
        .map(|(name, weight)| {
            let weight = match name {
                name if name.contains("q_proj") => permuted(weight, config.num_attention_heads),
                name if name.contains("k_proj") => permuted(weight, config.key_value_heads()),
                _ => weight.clone(),
            };
            let name = (names.iter()).fold(name.clone(), |name, (from, to)| name.replace(from, to));
            (name, QTensor::quantize(&weight, GgmlDType::F32).unwrap())
        })
        .collect();
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    let mut tokens: Vec<(u64, &String)> = (json["model"]["vocab"].as_object().unwrap().iter())
        .map(|(token, id)| (id.as_u64().unwrap(), token))
        .collect();
    tokens.sort();
    let merges = json["model"]["merges"].as_array().unwrap().iter();
    let merges = merges.map(|pair| {
        let [left, right] = [0, 1].map(|side| pair[side].as_str().unwrap());
        Value::String(format!("{left} {right}"))
    });
    let kinds = tokens
        .iter()
        .map(|(id, _)| Value::I32(if *id == 0 { 3 } else { 1 }));
    let metadata = vec![
        ("general.architecture", text("llama")),
        ("llama.block_count", Value::U32(2)),
        ("llama.context_length", Value::U32(64)),
        ("llama.embedding_length", Value::U32(16)),
        ("llama.feed_forward_length", Value::U32(32)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        (
            "tokenizer.ggml.tokens",
            Value::Array(tokens.iter().map(|(_, token)| text(token)).collect()),
        ),
        ("tokenizer.ggml.token_type", Value::Array(kinds.collect())),
        ("tokenizer.ggml.merges", Value::Array(merges.collect())),
        ("tokenizer.ggml.eos_token_id", Value::U32(0)),
        ("tokenizer.ggml.bos_token_id", Value::U32(7)),
    ];
    (metadata, stored)
}

/// Writes a GGUF file with other metadata than the model's; nothing takes a key out.
pub fn write_gguf(
    path: &Path,
    metadata: &Metadata,
    changed: &[(&str, Option<Value>)],
    tensors: &[(String, QTensor)],
) -> PathBuf {
    let mut all: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    for (key, value) in changed {
        all.retain(|(other, _)| other != key);
        all.extend(value.as_ref().map(|value| (*key, value)));
    }
    let tensors: Vec<(&str, &QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    gguf_file::write(&mut File::create(path).unwrap(), &all, &tensors).unwrap();
    path.to_owned()
}
