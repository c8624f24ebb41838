//! Adapters as PEFT keeps them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::Device;
use msl::model::{Llama, LoraSettings, adapter, precision::Precision};
use serde_json::{Value, json};

use crate::{hidden, models::write_model, read};

/// A model with adapters that change it, and the folder that they were saved in.
fn adapted(folder: &Path, settings: &LoraSettings) -> (Llama, PathBuf) {
    write_model(folder);
    let mut model = read(folder);
    model.adapt(settings, 1).unwrap();
    for (_, weight) in model.parameters() {
        weight.set(&weight.randn_like(0.0, 1.0).unwrap()).unwrap();
    }
    let adapters = folder.join("adapters");
    fs::create_dir(&adapters).unwrap();
    adapter::save(&adapters, &model, folder).unwrap();
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
