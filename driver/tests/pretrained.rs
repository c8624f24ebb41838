//! Pretrained models and adapters from files: what is read, and what is refused with its name.

use std::{collections::HashMap, fs, fs::File, path::Path};

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file, gguf_file::Value},
    safetensors,
};
use msl::{
    adapter,
    model::{Llama, LlamaConfig, LoraSettings, NamedTensors},
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

#[test]
fn a_folder_of_many_files_is_the_model_that_was_written_and_is_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let (config, weights) = write_model(folder.path());
    let whole = read(folder.path());
    assert!(whole.parameters().is_empty());
    let expected = hidden(&Llama::random(config, 3, DType::F32, &Device::Cpu).unwrap());
    assert_eq!(hidden(&whole), expected);

    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut files = HashMap::new();
    for (index, part) in weights.chunks(5).enumerate() {
        let name = format!("part-{index}.safetensors");
        let tensors: HashMap<String, Tensor> = part.iter().cloned().collect();
        safetensors::save(&tensors, folder.path().join(&name)).unwrap();
        files.extend(tensors.into_keys().map(|tensor| (tensor, name.clone())));
    }
    let index = serde_json::json!({ "weight_map": files });
    let file = folder.path().join("model.safetensors.index.json");
    fs::write(file, index.to_string()).unwrap();
    assert_eq!(hidden(&read(folder.path())), expected);
}

#[test]
fn a_model_that_does_not_fit_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (_, weights) = write_model(folder.path());
    let path = |name: &str| folder.path().join(name);
    let good = fs::read_to_string(path("config.json")).unwrap();
    let with = |from: &str, to: &str| {
        let changed = good.replace(from, to);
        assert_ne!(changed, good, "{from}");
        fs::write(path("config.json"), changed).unwrap();
        let refusal = refusal(folder.path());
        fs::write(path("config.json"), &good).unwrap();
        refusal
    };
    let unknown = with("\"llama\"", "\"gpt2\"");
    assert!(
        unknown.contains("gpt2") && unknown.contains("qwen3"),
        "{unknown}"
    );
    let shape = with("\"intermediate_size\": 32", "\"intermediate_size\": 48");
    assert!(
        shape.contains("mlp.gate_proj.weight") && shape.contains("[32, 16]"),
        "{shape}"
    );
    let vocabulary = with("\"vocab_size\": 2", "\"vocab_size\": 1");
    assert!(vocabulary.contains("the tokenizer has"), "{vocabulary}");
    let layers = with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert!(layers.contains("no tensor model.layers.2."), "{layers}");
    let left = with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    assert!(left.contains("has no tensor model.layers.1."), "{left}");

    let missing = "model.layers.1.self_attn.k_proj.weight";
    let rest: HashMap<String, Tensor> = (weights.into_iter())
        .filter(|(name, _)| name != missing)
        .collect();
    safetensors::save(&rest, path("model.safetensors")).unwrap();
    let refusal = refusal(folder.path());
    assert!(refusal.contains(missing), "{refusal}");
}

#[test]
fn adapters_come_back_as_they_were_saved_and_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let mut model = read(folder.path());
    model.adapt(&LoraSettings::default(), 1).unwrap();
    for (_, weight) in model.parameters() {
        weight.set(&weight.randn_like(0.0, 1.0).unwrap()).unwrap();
    }
    let adapters = folder.path().join("adapters");
    fs::create_dir(&adapters).unwrap();
    adapter::save(&adapters, &model, folder.path()).unwrap();
    let back = adapter::load_with_base(&adapters, None, Precision::F32, &Device::Cpu).unwrap();
    assert_eq!(hidden(&back), hidden(&model));
    assert_ne!(hidden(&back), hidden(&read(folder.path())));

    let file = adapters.join("adapter_config.json");
    let good = fs::read_to_string(&file).unwrap();
    for (from, to, said) in [
        (
            "\"r\": 8",
            "\"r\": 4",
            "q_proj.lora_A.weight has the shape [8, 16]",
        ),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "\"all\""),
        ("\"r\": 8", "\"r\": 8, \"use_dora\": true", "use_dora"),
        ("\"v_proj\"", "\"k_proj\"", "k_proj.lora_A.weight"),
    ] {
        fs::write(&file, good.replace(from, to)).unwrap();
        let refusal = format!(
            "{:#}",
            adapter::load_with_base(&adapters, None, Precision::F32, &Device::Cpu)
                .err()
                .unwrap()
        );
        assert!(refusal.contains(said), "{to}: {refusal}");
    }
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

#[test]
fn a_gguf_file_is_the_model_and_the_tokenizer_that_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let (config, weights) = write_model(folder.path());
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
    let stored: Vec<(String, QTensor)> = (weights.iter())
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
        serde_json::from_slice(&fs::read(folder.path().join("tokenizer.json")).unwrap()).unwrap();
    let mut tokens: Vec<(u64, &String)> = (json["model"]["vocab"].as_object().unwrap().iter())
        .map(|(token, id)| (id.as_u64().unwrap(), token))
        .collect();
    tokens.sort();
    let merges = json["model"]["merges"].as_array().unwrap().iter();
    let merges = merges.map(|pair| {
        let [left, right] = [0, 1].map(|side| pair[side].as_str().unwrap());
        Value::String(format!("{left} {right}"))
    });
    let text = |value: &str| Value::String(value.into());
    let kinds = tokens
        .iter()
        .map(|(id, _)| Value::I32(if *id == 0 { 3 } else { 1 }));
    let metadata = [
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
    let write = |changed: &[(&str, Value)]| {
        let path = folder.path().join("model.gguf");
        let mut metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (*k, v)).collect();
        for (key, value) in changed {
            metadata.retain(|(other, _)| other != key);
            metadata.push((key, value));
        }
        let tensors: Vec<(&str, &QTensor)> = stored.iter().map(|(k, v)| (k.as_str(), v)).collect();
        gguf_file::write(&mut File::create(&path).unwrap(), &metadata, &tensors).unwrap();
        path
    };
    let (model, tokenizer) = Pretrained::open(&write(&[]), None)
        .unwrap()
        .read(Precision::F32, &Device::Cpu)
        .unwrap();
    assert_eq!(hidden(&model), hidden(&read(folder.path())));
    assert_eq!(model.config().rms_norm_eps, 1e-5);
    assert_eq!(
        (tokenizer.end(), tokenizer.end_text().as_deref()),
        (0, Some("<|endoftext|>"))
    );
    // Digits stand alone, whatever merges there are.
    assert_eq!(tokenizer.encode("1984").unwrap().len(), 4);
    let add = |flag: bool| ("tokenizer.ggml.add_bos_token", Value::Bool(flag));
    let llama_3 = || ("tokenizer.ggml.pre", text("llama-bpe"));
    for (changed, begin) in [
        (vec![], vec![]),
        (vec![add(true)], vec![7]),
        (vec![llama_3()], vec![7]),
        (vec![llama_3(), add(false)], vec![]),
    ] {
        let tokenizer = Pretrained::open(&write(&changed), None).unwrap().tokenizer;
        // A run keeps the tokenizer in Hugging Face's form.
        let kept = folder.path().join("kept.json");
        tokenizer.save(&kept).unwrap();
        for tokenizer in [&tokenizer, &TextTokenizer::load(&kept, None).unwrap()] {
            let tokens = tokenizer.encode("The Sea").unwrap();
            let prompt = tokenizer.encode_prompt("The Sea").unwrap();
            assert_eq!(prompt, [&begin[..], &tokens].concat(), "{changed:?}");
        }
    }
    for (key, value) in [
        ("general.architecture", "mamba"),
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.pre", "tekken"),
        ("llama.rope.scaling.type", "yarn"),
    ] {
        let refusal = refusal(&write(&[(key, text(value))]));
        assert!(refusal.contains(value), "{refusal}");
    }
}
