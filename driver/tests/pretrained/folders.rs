//! Hugging Face folders.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor, safetensors};
use msl::model::{
    Llama, NamedTensors,
    precision::Precision,
    pretrained::{self, Pretrained},
};

use crate::{
    hidden,
    models::{tokenizer, write_model},
    read, refusal,
};

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
    assert!(
        vocabulary.contains("embed_tokens.weight has the shape"),
        "{vocabulary}"
    );
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

/// Writes tensors as a safetensors file.
fn write_tensors(path: &Path, tensors: impl IntoIterator<Item = (String, Tensor)>) {
    safetensors::save(&tensors.into_iter().collect::<HashMap<_, _>>(), path).unwrap();
}

/// Replaces the one file of a folder by two and their index, and gives the names in it.
fn split(folder: &Path, weights: &NamedTensors) -> HashMap<String, String> {
    let mut files = HashMap::new();
    for (index, part) in weights.chunks(12).enumerate() {
        let name = format!("part-{index}.safetensors");
        write_tensors(&folder.join(&name), part.iter().cloned());
        files.extend(
            part.iter()
                .map(|(tensor, _)| (tensor.clone(), name.clone())),
        );
    }
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    write_index(folder, &files);
    files
}

fn write_index(folder: &Path, files: &HashMap<String, String>) {
    let index = serde_json::json!({ "weight_map": files });
    let path = folder.join("model.safetensors.index.json");
    fs::write(path, index.to_string()).unwrap();
}

fn head(model: &Llama) -> Vec<f32> {
    let head = model.head().unwrap();
    let identity = Tensor::eye(model.config().hidden_size, DType::F32, &Device::Cpu).unwrap();
    let columns = head.logits(&identity).unwrap();
    let rows = columns.t().unwrap().flatten_all().unwrap();
    rows.to_vec1().unwrap()
}

#[test]
fn one_file_is_read_before_an_index_that_is_left_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let (_, weights) = write_model(folder.path());
    let expected = hidden(&read(folder.path()));
    let file = fs::read(folder.path().join("model.safetensors")).unwrap();
    let zeros = weights
        .iter()
        .map(|(name, weight)| (name.clone(), weight.zeros_like().unwrap()));
    split(folder.path(), &zeros.collect());
    assert_ne!(hidden(&read(folder.path())), expected);
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    assert_eq!(hidden(&read(folder.path())), expected);
}

#[test]
fn an_index_whose_files_are_others_or_elsewhere_is_refused_with_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let (_, weights) = write_model(folder.path());
    let good = split(folder.path(), &weights);
    let said = |change: &dyn Fn(&mut HashMap<String, String>)| {
        let mut files = good.clone();
        change(&mut files);
        write_index(folder.path(), &files);
        refusal(folder.path())
    };
    let norm = "model.norm.weight";
    for (refusal, tensor_or_file) in [
        (said(&|files| drop(files.remove(norm))), norm),
        (
            said(&|files| drop(files.insert(norm.into(), "part-0.safetensors".into()))),
            norm,
        ),
        (
            said(&|files| drop(files.insert("more".into(), "part-0.safetensors".into()))),
            "more",
        ),
        (
            said(&|files| drop(files.insert(norm.into(), "part-7.safetensors".into()))),
            "part-7",
        ),
        (
            said(&|files| drop(files.insert(norm.into(), "../x.safetensors".into()))),
            "../x",
        ),
    ] {
        assert!(
            refusal.contains(tensor_or_file) && refusal.contains("index.json"),
            "{refusal}"
        );
    }
}

#[test]
fn the_head_is_the_one_that_the_files_hold() {
    let folder = tempfile::tempdir().unwrap();
    let (config, weights) = write_model(folder.path());
    let named = |name: &str| {
        let found = weights.iter().find(|(found, _)| found == name);
        found.unwrap().1.clone()
    };
    let (embedding, other) = (named("model.embed_tokens.weight"), named("lm_head.weight"));
    let write = |tied: bool, embedded: Option<&Tensor>, head: Option<&Tensor>| {
        let mut config = config.clone();
        config.tie_word_embeddings = tied;
        let given = [
            ("model.embed_tokens.weight", embedded),
            ("lm_head.weight", head),
        ];
        let given = given
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.to_owned(), tensor?.clone())));
        let rest = weights.iter().filter(|(name, _)| {
            name.starts_with("model.layers.") || name.starts_with("model.norm")
        });
        let weights = given.chain(rest.cloned()).collect();
        pretrained::save(folder.path(), &config, &tokenizer(), &weights).unwrap();
    };
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (tied, embedded, given, expected, stays_tied) in [
        (true, Some(&embedding), None, &embedding, true),
        (true, Some(&embedding), Some(&embedding), &embedding, true),
        (true, Some(&embedding), Some(&other), &other, false),
        (true, None, Some(&other), &other, true),
        (false, Some(&embedding), Some(&other), &other, false),
    ] {
        write(tied, embedded, given);
        let model = read(folder.path());
        assert_eq!(head(&model), values(expected));
        assert_eq!(model.config().tie_word_embeddings, stays_tied);
    }
    write(false, Some(&embedding), None);
    let refusal = refusal(folder.path());
    assert!(
        refusal.contains("lm_head.weight") && refusal.contains("tie_word_embeddings"),
        "{refusal}"
    );
}

#[test]
fn a_model_saved_without_its_head_is_read_by_its_short_names() {
    let folder = tempfile::tempdir().unwrap();
    let (mut config, weights) = write_model(folder.path());
    config.tie_word_embeddings = true;
    let whole = hidden(&read(folder.path()));
    let short = weights.iter().filter_map(|(name, weight)| {
        Some((name.strip_prefix("model.")?.to_owned(), weight.clone()))
    });
    let short: NamedTensors = short.collect();
    pretrained::save(folder.path(), &config, &tokenizer(), &short).unwrap();
    assert_eq!(hidden(&read(folder.path())), whole);

    let both = short.iter().cloned().chain([weights[0].clone()]).collect();
    pretrained::save(folder.path(), &config, &tokenizer(), &both).unwrap();
    assert!(refusal(folder.path()).contains("embed_tokens.weight"));
}

#[test]
fn what_is_no_model_is_named_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (config, weights) = write_model(folder.path());
    let path = |name: &str| folder.path().join(name);
    let good = fs::read(path("model.safetensors")).unwrap();
    let said = |name: &str, bytes: &[u8], words: [&str; 2]| {
        let before = fs::read(path(name)).ok();
        fs::write(path(name), bytes).unwrap();
        let refusal = refusal(folder.path());
        match before {
            Some(before) => fs::write(path(name), before).unwrap(),
            None => fs::remove_file(path(name)).unwrap(),
        }
        assert!(
            words.iter().all(|word| refusal.contains(word)),
            "{name}: {refusal}"
        );
    };
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        said(name, pointer, [name, "git-lfs"]);
    }
    said("config.json", b"\xff\xfe{\0}\0", ["config.json", "UTF-16"]);
    said(
        "model.safetensors",
        &good[..good.len() / 2],
        ["model.safetensors", "no file of safetensors"],
    );
    said(
        "adapter_config.json",
        b"{}",
        ["adapter_config.json", "msl merge"],
    );
    let text = fs::read_to_string(path("config.json")).unwrap();
    let quantised = text.replacen('{', "{\"quantization_config\": {\"bits\": 4},", 1);
    said(
        "config.json",
        quantised.as_bytes(),
        ["config.json", "quantization_config"],
    );

    let bytes = weights.iter().map(|(name, weight)| {
        let weight = match name.contains("gate_proj") {
            true => weight.to_dtype(DType::U8).unwrap(),
            false => weight.clone(),
        };
        (name.clone(), weight)
    });
    pretrained::save(folder.path(), &config, &tokenizer(), &bytes.collect()).unwrap();
    let refused = refusal(folder.path());
    assert!(
        refused.contains("gate_proj") && refused.contains("U8"),
        "{refused}"
    );

    fs::remove_file(path("model.safetensors")).unwrap();
    fs::write(path("pytorch_model.bin"), "").unwrap();
    let refused = refusal(folder.path());
    assert!(refused.contains("pytorch_model.bin"), "{refused}");
    for name in ["small.gguf", "large.gguf"] {
        fs::write(path(name), "GGUF").unwrap();
    }
    let refused = refusal(folder.path());
    assert!(refused.contains("large.gguf, small.gguf"), "{refused}");
}

#[test]
fn sizes_are_compared_with_the_files_before_memory_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let path = folder.path().join("config.json");
    let good = fs::read_to_string(&path).unwrap();
    for (key, sizes) in [
        ("hidden_size", [1_u64 << 20, 1 << 40, 1 << 63]),
        ("vocab_size", [1 << 30, 1 << 40, 1 << 63]),
        ("num_hidden_layers", [1_000_000_000, 1 << 40, 1 << 63]),
        ("head_dim", [1 << 30, 1 << 33, 1 << 62]),
    ] {
        for size in sizes {
            let mut config: serde_json::Value = serde_json::from_str(&good).unwrap();
            config[key] = size.into();
            fs::write(&path, config.to_string()).unwrap();
            let refusal = refusal(folder.path());
            let folder = folder.path().display().to_string();
            assert!(refusal.contains(&folder), "{key} of {size}: {refusal}");
        }
    }
}

#[test]
fn a_weight_that_f16_cannot_hold_is_refused_with_the_types_that_can() {
    let folder = tempfile::tempdir().unwrap();
    let (config, weights) = write_model(folder.path());
    let large = weights.iter().map(|(name, weight)| {
        let factor = if name.contains("layers.1.mlp.up_proj") {
            1e7
        } else {
            1.0
        };
        (name.clone(), (weight * factor).unwrap())
    });
    pretrained::save(folder.path(), &config, &tokenizer(), &large.collect()).unwrap();
    let read = |precision| {
        Pretrained::open(folder.path(), None)
            .unwrap()
            .read(precision, &Device::Cpu)
    };
    assert!(read(Precision::Bf16).is_ok());
    let refusal = format!("{:#}", read(Precision::F16).err().unwrap());
    assert!(
        refusal.contains("up_proj") && refusal.contains("--dtype"),
        "{refusal}"
    );
}

#[test]
fn tokens_that_the_model_does_not_have_are_refused_where_a_text_uses_them() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let path = folder.path().join("tokenizer.json");
    let mut json: serde_json::Value = msl::io::json::read_json(&path).unwrap();
    let rows = tokenizer().vocabulary();
    let pad = serde_json::json!({
        "id": rows, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    json["added_tokens"].as_array_mut().unwrap().push(pad);
    msl::io::json::write_json(&path, &json).unwrap();
    let tokenizer = Pretrained::open(folder.path(), None).unwrap().tokenizer;
    assert_eq!(tokenizer.vocabulary(), rows + 1);
    assert!(tokenizer.encode("The Sea").is_ok());
    let refusal = format!("{:#}", tokenizer.encode("The <pad> Sea").unwrap_err());
    assert!(
        refusal.contains("<pad>") && refusal.contains(&rows.to_string()),
        "{refusal}"
    );
    let refusal = format!(
        "{:#}",
        Pretrained::open(folder.path(), Some("<pad>"))
            .err()
            .unwrap()
    );
    assert!(
        refusal.contains("ends a response") && refusal.contains("<pad>"),
        "{refusal}"
    );
}

#[test]
fn a_damaged_tokenizer_is_an_error_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let path = folder.path().join("tokenizer.json");
    let good = fs::read_to_string(&path).unwrap();
    let none = "\"continuing_subword_prefix\": null";
    let long = "\"continuing_subword_prefix\": \"a prefix that no token has\"";
    assert!(good.contains(none));
    let decoder = good.find("\"decoder\"").unwrap();
    for damaged in [
        good.replace(none, long),
        good[..decoder + 30].to_owned(),
        good.replacen(
            "\"trim_offsets\": true",
            &format!("\"trim_offsets\": {}", "[".repeat(40)),
            3,
        ),
    ] {
        fs::write(&path, damaged).unwrap();
        let refusal = refusal(folder.path());
        assert!(refusal.contains("tokenizer.json"), "{refusal}");
    }
}

#[test]
fn a_token_whose_id_is_far_beyond_all_others_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["model"]["vocab"]["~"] = (1u32 << 31).into();
    fs::write(&path, tokenizer.to_string()).unwrap();
    let refusal = refusal(folder.path());
    assert!(
        refusal.contains("tokenizer.json") && refusal.contains("\"~\" has the id 2147483648"),
        "{refusal}"
    );
}
