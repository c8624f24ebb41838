//! Adapters of pretrained models over catalogues of codes that the models do not have as tokens.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor, safetensors};
use msl::model::{adapter, precision::Precision, pretrained::Pretrained};
use serde_json::{Value, json};

use crate::{
    running::{
        assert_training_is_refused, errors, json, last_checkpoint, line, msl,
        write_pretrained_model,
    },
    semantic_ids::{ITEMS, write_index},
};

/// Number of different codes of the catalogue.
const CODES: usize = 9;

const ROWS: &str = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Trains adapters of the model `base` on a folder's catalogue.
fn train(folder: &Path, model: &str, run: &str, options: &[&str]) -> Value {
    let base = "train --data . --loss msl --prompt titles --json --epochs 2 --batch-size 16 --learning-rate 1e-2";
    let base: Vec<&str> = base.split_whitespace().collect();
    let trained = msl(
        folder,
        &[&base[..], &["--model", model, "--output", run], options].concat(),
    );
    json(&trained)
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    safetensors::load(path, &Device::Cpu).unwrap()
}

/// The logits of a text of the model's own tokens and codes.
fn logits(folder: &Path, adapters: Option<&Path>) -> Vec<f32> {
    let (mut model, _) = Pretrained::open(folder, None)
        .and_then(|opened| opened.read(Precision::F32, &Device::Cpu))
        .unwrap();
    if let Some(adapters) = adapters {
        adapter::load(adapters, &mut model).unwrap();
    }
    let last = model.config().vocab_size as u32 - 1;
    let tokens = Tensor::new(&[[40u32, last, last - 5, 7]], &Device::Cpu).unwrap();
    let logits = model
        .head()
        .unwrap()
        .logits(&model.hidden(&tokens).unwrap());
    logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn codes_that_a_pretrained_model_lacks_become_tokens_whose_rows_alone_are_trained() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_index(folder);
    let base = folder.join("base");
    write_pretrained_model(&base);
    let own = read(&base.join("config.json"))["vocab_size"]
        .as_u64()
        .unwrap() as usize;
    let trained = train(folder, "base", "run", &["--validation", "10"]);
    let loss = |name: &str| trained[name].as_f64().unwrap();
    assert!(loss("last_loss") < loss("first_loss"), "{trained}");
    assert_eq!(
        read(&folder.join("run/training.json"))["new_tokens"],
        "titles"
    );

    let checkpoint = last_checkpoint(&folder.join("run"));
    let all = own + CODES;
    assert_eq!(read(&checkpoint.join("config.json"))["vocab_size"], all);
    let indices = (own..all).collect::<Vec<_>>();
    assert_eq!(
        read(&checkpoint.join("adapter_config.json"))["trainable_token_indices"],
        json!(indices)
    );
    let tokenizer = read(&checkpoint.join("tokenizer.json"));
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let codes: Vec<u64> = (added.iter())
        .filter(|token| token["content"].as_str().unwrap().starts_with("<a_"))
        .map(|token| token["id"].as_u64().unwrap())
        .collect();
    assert_eq!(codes.len(), 5);
    assert!(
        codes
            .iter()
            .all(|&id| (own as u64..all as u64).contains(&id))
    );
    let saved = tensors(&checkpoint.join("adapter_model.safetensors"));
    assert_eq!(saved[ROWS].dims(), [CODES, 16]);
    assert_eq!(saved[ROWS].dtype(), DType::F32);
    assert_eq!(
        saved.len(),
        9,
        "a model of two layers whose head is the embedding"
    );

    let item_nll = |options: &[&str]| {
        let output = msl(folder, &[&["evaluate", "run", "--json"], options].concat());
        line(&json(&output), "run")["item_nll"].as_f64().unwrap()
    };
    assert!(item_nll(&[]) < (ITEMS as f64).ln());
    assert_eq!(
        item_nll(&["--search", "exact"]),
        item_nll(&["--normalise", "vocabulary"])
    );
    let found = json(&msl(
        folder,
        &[
            "recommend",
            "run",
            "Film 3",
            "<a_4><b_0>",
            "--top",
            "20",
            "--json",
        ],
    ));
    let found = found["recommended"].as_array().unwrap();
    let probabilities = found
        .iter()
        .map(|line| line["probability"].as_f64().unwrap());
    assert!((probabilities.sum::<f64>() - 1.0).abs() < 1e-4);
    assert!(msl(folder, &["resume", "run"]).status.success());
}

#[test]
fn a_merged_model_has_the_codes_as_its_own_tokens_and_the_rows_of_its_other_tokens_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_index(folder);
    let base = folder.join("base");
    write_pretrained_model(&base);
    train(folder, "base", "run", &[]);
    let checkpoint = last_checkpoint(&folder.join("run"));
    let merge = |adapters: &str, output: &str| {
        let output = msl(
            folder,
            &["merge", adapters, "--dtype", "f32", "--output", output],
        );
        assert!(output.status.success(), "{}", errors(&output));
    };
    merge("run", "merged");
    let merged = folder.join("merged");
    let before = &tensors(&base.join("model.safetensors"))[EMBEDDING];
    let after = &tensors(&merged.join("model.safetensors"))[EMBEDDING];
    let own = before.dim(0).unwrap();
    let rows = &tensors(&checkpoint.join("adapter_model.safetensors"))[ROWS];
    assert_eq!(after.dims(), [own + CODES, 16]);
    let values = |rows: &Tensor| rows.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(values(after), [values(before), values(rows)].concat());
    let expected = logits(&base, Some(&checkpoint));
    for (found, expected) in logits(&merged, None).iter().zip(&expected) {
        assert!(
            (found - expected).abs() < 1e-5,
            "{found}, expected {expected}"
        );
    }

    // The folder of adapters alone is merged with the tokenizer in it, and refused without one.
    let alone = folder.join("alone");
    fs::create_dir(&alone).unwrap();
    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    ] {
        fs::copy(checkpoint.join(file), alone.join(file)).unwrap();
    }
    merge("alone", "merged-alone");
    for file in ["model.safetensors", "tokenizer.json", "config.json"] {
        let [one, other] =
            ["merged", "merged-alone"].map(|it| fs::read(folder.join(it).join(file)));
        assert!(one.unwrap() == other.unwrap(), "{file} differs");
    }
    fs::remove_file(alone.join("tokenizer.json")).unwrap();
    let output = msl(folder, &["merge", "alone", "--output", "none"]);
    assert!(
        errors(&output).contains("rows for 9 tokens that were added"),
        "{}",
        errors(&output)
    );

    // All codes are tokens of the merged model: nothing is added to it.
    train(folder, "merged", "again", &[]);
    let checkpoint = last_checkpoint(&folder.join("again"));
    let config = read(&checkpoint.join("adapter_config.json"));
    assert!(config["trainable_token_indices"].is_null());
    let said = errors(&msl(folder, &["inspect", ".", "--model", "base", "--json"]));
    assert!(said.contains("19 different paths of codes"), "{said}");
}

#[test]
fn rows_of_codes_begin_as_is_asked_for_and_other_runs_have_no_such_option() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_index(folder);
    write_pretrained_model(&folder.join("base"));
    let loss = |run: &str, options: &[&str]| {
        train(folder, "base", run, options)["first_loss"]
            .as_f64()
            .unwrap()
    };
    // Rows that are all alike say nothing about the items.
    let mean = loss("mean", &["--new-tokens", "mean"]);
    let titles = loss("titles", &["--new-tokens", "titles"]);
    assert_ne!(mean, titles);
    assert_eq!(loss("default", &[]), titles);
    loss("both", &["--identifier", "codes-title", "--dtype", "bf16"]);

    let refused = |options: &[&str], expected: &str| {
        assert_training_is_refused(folder, options, expected);
    };
    let mean = ["--new-tokens", "mean"];
    refused(&mean, "--model");
    let titles = ["--model", "base", "--identifier", "title"];
    refused(&[&titles[..], &mean].concat(), "--new-tokens is for codes");

    // A code that is a word of the model, where the others are none.
    let index = fs::read_to_string(folder.join("films.index.json")).unwrap();
    fs::write(folder.join("films.index.json"), index.replace("<a_0>", "a")).unwrap();
    refused(
        &["--model", "base"],
        "1 of the 9 codes are tokens of the tokenizer already",
    );
}
