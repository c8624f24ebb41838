//! Adapters as PEFT keeps them.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor, safetensors};
use msl::model::{AddedRows, Llama, LoraSettings, adapter, precision::Precision};
use serde_json::{Value, json};

use crate::{
    hidden,
    models::{tokenizer, write_model},
    read,
};

/// Gives what is trained of a model random values, and saves it in a folder of its own.
fn save_with_random_values(folder: &Path, model: &Llama) -> PathBuf {
    for (_, weight) in model.parameters() {
        weight.set(&weight.randn_like(0.0, 1.0).unwrap()).unwrap();
    }
    let adapters = folder.join("adapters");
    fs::create_dir(&adapters).unwrap();
    adapter::save(&adapters, model, folder).unwrap();
    adapters
}

/// A model with adapters that change it, and the folder that they were saved in.
fn adapted(folder: &Path, settings: &LoraSettings) -> (Llama, PathBuf) {
    write_model(folder);
    let mut model = read(folder);
    model.adapt(settings, 1).unwrap();
    let adapters = save_with_random_values(folder, &model);
    (model, adapters)
}

fn load(adapters: &Path) -> Result<Llama, String> {
    adapter::base(adapters)
        .and_then(|base| adapter::load_onto(adapters, &base, None, Precision::F32, &Device::Cpu))
        .map_err(|error| format!("{error:#}"))
}

/// Loads adapters whose configuration has other values; null takes a key out.
fn load_with(adapters: &Path, changes: &Value) -> Result<Llama, String> {
    let path = adapters.join("adapter_config.json");
    let good = fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&good).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(&path, config.to_string()).unwrap();
    let loaded = load(adapters);
    fs::write(&path, good).unwrap();
    loaded
}

#[test]
fn adapters_come_back_as_they_were_saved() {
    let folder = tempfile::tempdir().unwrap();
    let settings = LoraSettings::default();
    let (model, adapters) = adapted(folder.path(), &settings);
    let back = load(&adapters).unwrap();
    assert_eq!(hidden(&back), hidden(&model));
    assert_eq!(back.adapters(), Some(&settings));
    assert_ne!(hidden(&back), hidden(&read(folder.path())));
}

#[test]
fn targets_are_found_by_name_path_expression_and_layer_as_peft_finds_them() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |targets: &[&str]| LoraSettings {
        targets: targets.iter().map(|&target| target.to_owned()).collect(),
        ..LoraSettings::default()
    };
    let (first, second) = (
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    );
    for (number, (saved, configured)) in [
        (&["q_proj", "v_proj"][..], json!({"target_modules": r"model\.layers\..*\.(q_proj|v_proj)"})),
        (&["q_proj"], json!({"target_modules": [first, second]})),
        (&["q_proj"], json!({"target_modules": r".*self_attn\.(?!k_|v_|o_).*"})),
        (&[first], json!({"target_modules": ["q_proj"], "layers_to_transform": [0]})),
        (&[second], json!({"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"})),
        (&[first], json!({"target_modules": ["q_proj", "lm_head"], "exclude_modules": ["layers.1.self_attn.q_proj", "lm_head"]})),
        (
            &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            json!({"target_modules": "all-linear"}),
        ),
        (
            &["q_proj"],
            json!({"layers_to_transform": [], "modules_to_save": [], "rank_pattern": {}, "exclude_modules": []}),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = folder.path().join(number.to_string());
        fs::create_dir(&folder).unwrap();
        let (model, adapters) = adapted(&folder, &settings(saved));
        let loaded = load_with(&adapters, &configured).unwrap();
        assert_eq!(hidden(&loaded), hidden(&model), "{configured}");
    }
}

#[test]
fn values_that_do_nothing_are_read_and_all_others_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (model, adapters) = adapted(folder.path(), &LoraSettings::default());
    let expected = hidden(&model);
    for neutral in [
        json!({"init_lora_weights": true, "use_dora": false, "alora_invocation_tokens": null}),
        json!({"init_lora_weights": "gaussian", "loftq_config": {}, "megatron_core": "megatron.core"}),
        json!({"bias": "none", "peft_version": "0.99.0", "task_type": null, "revision": "main"}),
        json!({"a_key_of_tomorrow": null, "another": false, "third": {}, "fourth": []}),
    ] {
        let loaded = load_with(&adapters, &neutral).unwrap();
        assert_eq!(hidden(&loaded), expected, "{neutral}");
    }
    let root_of_rank = LoraSettings::default().rank as f64;
    let alpha = LoraSettings::default().alpha / root_of_rank.sqrt();
    let stabilised = load_with(&adapters, &json!({"use_rslora": true, "lora_alpha": alpha}));
    for (found, expected) in hidden(&stabilised.unwrap()).iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4);
    }
    for (key, value) in [
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("corda")),
        ("use_dora", json!(true)),
        ("alora_invocation_tokens", json!([1, 2])),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("target_modules", json!(["q_proj", "v_proj", "lm_head"])),
        ("target_modules", json!("(")),
        ("target_modules", json!(["c_attn"])),
        ("layers_pattern", json!("h")),
        ("task_type", json!("SEQ_CLS")),
        ("peft_type", json!("LOHA")),
        ("bias", json!("all")),
        ("lora_bias", json!(true)),
        ("a_key_of_tomorrow", json!("on")),
        ("another", json!(1)),
    ] {
        let refusal = load_with(&adapters, &json!({ key: value })).err().unwrap();
        assert!(
            refusal.contains(key) && refusal.contains("adapter_config.json"),
            "{key} of {value}: {refusal}"
        );
    }
}

#[test]
fn adapters_that_are_not_those_of_their_configuration_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (_, adapters) = adapted(folder.path(), &LoraSettings::default());
    for (change, said) in [
        (
            json!({"r": 4}),
            "q_proj.lora_A.weight has the shape [8, 16]",
        ),
        (
            json!({"r": 100_000_000}),
            "where r of adapter_config.json is 100000000",
        ),
        (
            json!({"r": 1_u64 << 40}),
            "where r of adapter_config.json is 1099511627776",
        ),
        (json!({"r": 0}), "r is 0"),
        (
            json!({"target_modules": ["q_proj", "k_proj"]}),
            "k_proj.lora_A.weight",
        ),
        (
            json!({"target_modules": ["q_proj"]}),
            "v_proj.lora_A.weight",
        ),
        (
            json!({"layers_to_transform": [0]}),
            "layers.1.self_attn.q_proj.lora_A.weight",
        ),
    ] {
        let refusal = load_with(&adapters, &change).err().unwrap();
        assert!(refusal.contains(said), "{change}: {refusal}");
    }
}

#[test]
fn a_model_that_is_not_where_the_adapters_say_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (_, adapters) = adapted(folder.path(), &LoraSettings::default());
    for (name, expected) in [("meta-llama/Llama-2-7b", "--model"), ("", "does not name")] {
        let refusal = load_with(&adapters, &json!({"base_model_name_or_path": name}))
            .err()
            .unwrap();
        assert!(
            refusal.contains("adapter_config.json") && refusal.contains(expected),
            "{refusal}"
        );
    }
}

/// Number of tokens that are added in the tests.
const ADDED: usize = 3;

/// A model with adapters and added tokens, untied, and the folder that they were saved in.
fn with_added_tokens(folder: &Path) -> (Llama, PathBuf) {
    let (config, _) = write_model(folder);
    let mut model = read(folder);
    model.adapt(&LoraSettings::default(), 1).unwrap();
    let rows = Tensor::zeros((ADDED, 16), DType::F32, &Device::Cpu).unwrap();
    let rows = AddedRows {
        embedding: rows.clone(),
        head: Some(rows),
    };
    let own = config.vocab_size;
    model.add_tokens(own..own + ADDED, rows).unwrap();
    let adapters = save_with_random_values(folder, &model);
    (model, adapters)
}

/// The logits of a text that ends with added tokens.
fn logits(model: &Llama) -> Vec<f32> {
    let last = model.config().vocab_size as u32 - 1;
    let tokens = Tensor::new(&[[1u32, last, 70, last - 2, 5]], &Device::Cpu).unwrap();
    let logits = model
        .head()
        .unwrap()
        .logits(&model.hidden(&tokens).unwrap());
    logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

const EMBEDDING_ROWS: &str =
    "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
const HEAD_ROWS: &str = "base_model.model.lm_head.token_adapter.trainable_tokens_delta";

#[test]
fn rows_of_added_tokens_are_saved_as_peft_names_them_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let (model, adapters) = with_added_tokens(folder.path());
    let config = fs::read_to_string(adapters.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let first = model.config().vocab_size - ADDED;
    let tokens = json!([first, first + 1, first + 2]);
    assert_eq!(
        config["trainable_token_indices"],
        json!({"embed_tokens": tokens, "lm_head": tokens})
    );
    let file = adapters.join("adapter_model.safetensors");
    let saved = safetensors::load(file, &Device::Cpu).unwrap();
    for name in [EMBEDDING_ROWS, HEAD_ROWS] {
        assert_eq!(saved[name].dims(), [ADDED, 16], "{name}");
    }
    let back = load(&adapters).unwrap();
    assert_eq!(logits(&back), logits(&model));
    assert_eq!(back.added_tokens(), Some(first..first + ADDED));
    assert_eq!(back.parameters().len(), model.parameters().len());
}

#[test]
fn embeddings_that_peft_saves_whole_after_a_resize_are_read_and_must_be_those_of_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let (mut model, adapters) = with_added_tokens(folder.path());
    let file = adapters.join("adapter_model.safetensors");
    let saved = safetensors::load(&file, &Device::Cpu).unwrap();
    let merged: HashMap<String, Tensor> = model.merged_weights().unwrap().into_iter().collect();
    let embedding = &merged["model.embed_tokens.weight"];
    let head = &merged["lm_head.weight"];
    let first = model.config().vocab_size - ADDED;
    let list = json!({"trainable_token_indices": [first, first + 1, first + 2]});
    let (wrapped, plain) = (
        "base_model.model.model.embed_tokens.token_adapter.base_layer.weight",
        "base_model.model.lm_head.weight",
    );
    let load_with_tensors = |changes: &[(&str, Option<&Tensor>)], config: &Value| {
        let mut tensors = saved.clone();
        for (name, tensor) in changes {
            tensors.remove(*name);
            tensors.extend(tensor.map(|tensor| (name.to_string(), tensor.clone())));
        }
        safetensors::save(&tensors, &file).unwrap();
        load_with(&adapters, config)
    };
    // The embedding's rows alone were trained, and the whole head is beside them.
    let whole = [
        (wrapped, Some(embedding)),
        (plain, Some(head)),
        (HEAD_ROWS, None),
    ];
    let loaded = load_with_tensors(&whole, &list).unwrap();
    assert_eq!(logits(&loaded), logits(&model));

    let padded = Tensor::cat(&[head, &head.narrow(0, 0, 5).unwrap()], 0).unwrap();
    let other = embedding.flip(&[1]).unwrap();
    let refused = |changes: &[(&str, Option<&Tensor>)], config: &Value, expected: &str| {
        let refusal = load_with_tensors(changes, config).err().unwrap();
        assert!(refusal.contains(expected), "{refusal}");
    };
    refused(&[(HEAD_ROWS, None)], &list, "save_embedding_layers=True");
    refused(&[(EMBEDDING_ROWS, None)], &json!({}), EMBEDDING_ROWS);
    refused(&[(plain, Some(&padded))], &json!({}), "pad_to_multiple_of");
    refused(
        &[(wrapped, Some(&other))],
        &json!({}),
        "belong to another model",
    );
    refused(
        &[(EMBEDDING_ROWS, Some(head))],
        &json!({}),
        "the shape [278, 16]",
    );
    refused(
        &[],
        &json!({"trainable_token_indices": null}),
        "no place for the tensor",
    );
    for (tokens, expected) in [
        (json!([first, first + 2]), "277 after 275"),
        (
            json!([4, 5, 6]),
            "the tokens 4 to 6 of the 275 that the model has",
        ),
        (
            json!([first + 5, first + 6, first + 7]),
            "added from 280 on, and the model has 275",
        ),
        (json!({"wte": [first]}), "the module wte"),
        (
            json!({"embed_tokens": [first], "lm_head": [first, first + 1]}),
            "275..277 for lm_head and 275..276 for embed_tokens",
        ),
    ] {
        refused(&[], &json!({"trainable_token_indices": tokens}), expected);
    }
}

#[test]
fn the_tokenizer_beside_adapters_must_have_the_tokens_that_were_added() {
    let folder = tempfile::tempdir().unwrap();
    let (config, _) = write_model(folder.path());
    let mut model = read(folder.path());
    model.adapt(&LoraSettings::default(), 1).unwrap();
    // Two rows of the model, which no token used, gave way to the first two of three new tokens.
    let tokens = config.vocab_size - 2..config.vocab_size + 1;
    let rows = Tensor::ones((3, 16), DType::F32, &Device::Cpu).unwrap();
    let rows = AddedRows {
        embedding: rows.clone(),
        head: Some(rows),
    };
    model.add_tokens(tokens.clone(), rows).unwrap();
    let adapters = save_with_random_values(folder.path(), &model);
    let own = tokenizer();
    let file = adapters.join("tokenizer.json");

    own.save(&file).unwrap();
    let refusal = adapter::tokenizer(&adapters, &own, &tokens).err().unwrap();
    let refusal = format!("{refusal:#}");
    let expected = format!(
        "has {} tokens, and the adapters of its folder were trained with {}",
        tokens.end - 1,
        tokens.end
    );
    assert!(refusal.contains(&expected), "{refusal}");

    let (grown, _) = own.with_codes(&["<x_0>".into()]).unwrap();
    grown.save(&file).unwrap();
    assert_eq!(logits(&load(&adapters).unwrap()), logits(&model));
    let padded = json!({"trainable_token_indices": [1, 2, 3]});
    let refusal = load_with(&adapters, &padded).err().unwrap();
    assert!(refusal.contains("the tokens 1 to 3 of the"), "{refusal}");
}
