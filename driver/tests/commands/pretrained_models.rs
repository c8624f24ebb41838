//! Adapters of a pretrained model, trained and evaluated in every type.

use std::{fs, path::Path};

use candle_core::{DType, Device, safetensors};

use crate::running::{
    SMALL, errors, json, last_checkpoint, line, msl, write_catalogue, write_pretrained_model,
};

/// Trains adapters on a folder's catalogue and model, and gives what the command printed.
fn train(folder: &Path, output: &str, options: &[&str]) -> serde_json::Value {
    let base = "train --data . --model base --loss lml --prompt titles --json --epochs 2 --batch-size 16 --learning-rate 1e-2 \
                --lora-dropout 0.1 --output";
    let base: Vec<&str> = base.split_whitespace().collect();
    json(&msl(folder, &[&base[..], &[output], options].concat()))
}

fn item_nll(folder: &Path, run: &str, options: &[&str]) -> f64 {
    let evaluated = json(&msl(
        folder,
        &[&["evaluate", run, "--json"], options].concat(),
    ));
    line(&evaluated, run)["item_nll"].as_f64().unwrap()
}

#[test]
fn a_pretrained_model_is_tuned_in_every_type_and_evaluated_in_any() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    write_pretrained_model(&folder.join("base"));
    train(folder, "f32", &[]);
    let expected = item_nll(folder, "f32", &[]);
    for dtype in ["f16", "bf16", "stored"] {
        let trained = train(folder, dtype, &["--dtype", dtype]);
        let loss = |name: &str| trained[name].as_f64().unwrap();
        assert!(loss("last_loss") < loss("first_loss"), "{trained}");
        let (same, wider) = (
            item_nll(folder, dtype, &[]),
            item_nll(folder, dtype, &["--dtype", "f32"]),
        );
        assert_ne!(
            same, wider,
            "{dtype}: evaluated in the type of training unless told otherwise"
        );
        for found in [same, wider] {
            assert!(
                (found / expected - 1.0).abs() < 0.02,
                "{dtype}: {found}, expected {expected}"
            );
        }
    }
    // The model's files are in bf16.
    let adapters = |run: &str| {
        let folder = last_checkpoint(&folder.join(run));
        fs::read(folder.join("adapter_model.safetensors")).unwrap()
    };
    assert!(adapters("stored") == adapters("bf16"));
    assert!(adapters("stored") != adapters("f16"));
}

#[test]
fn a_type_is_refused_for_a_model_from_scratch() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let train = ["train", "--data", ".", "--output", "run", "--dtype", "bf16"];
    let output = msl(folder.path(), &train);
    assert!(!output.status.success());
    assert!(
        errors(&output).contains("--model <FOLDER|FILE.gguf>"),
        "{}",
        errors(&output)
    );
}

/// Changes a JSON file.
fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut json = msl::io::json::read_json(path).unwrap();
    change(&mut json);
    msl::io::json::write_json(path, &json).unwrap();
}

#[test]
fn a_model_whose_end_token_had_to_be_named_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    let base = folder.join("base");
    write_pretrained_model(&base);
    edit(&base.join("config.json"), |config| {
        config.as_object_mut().unwrap().remove("eos_token_id");
    });
    let tokenizer = fs::read_to_string(base.join("tokenizer.json")).unwrap();
    let tokenizer = tokenizer.replace("<|endoftext|>", "<stop>");
    fs::write(base.join("tokenizer.json"), tokenizer).unwrap();
    let named = ["--end-token", "<stop>"];
    train(folder, "run", &named);

    assert!(item_nll(folder, "run", &[]) > 0.0);
    let succeed = |command: &[&str]| {
        let output = msl(folder, command);
        assert!(output.status.success(), "{}", errors(&output));
    };
    succeed(&["resume", "run"]);
    succeed(&["merge", "run", "--output", "merged"]);
    // PEFT's files alone do not name it.
    let checkpoint = last_checkpoint(&folder.join("run"));
    let merge = |from: &str, more: &[&str]| -> Vec<String> {
        let command = [&["merge", from, "--output", "again"], more].concat();
        command.into_iter().map(str::to_owned).collect()
    };
    let run = |command: Vec<String>| {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        msl(folder, &command)
    };
    let checkpoint = checkpoint.to_str().unwrap();
    assert!(errors(&run(merge(checkpoint, &[]))).contains("name the end token"));
    let refused = errors(&run(merge("run", &named)));
    assert!(
        refused.contains("run is a run") && refused.contains("--end-token"),
        "{refused}"
    );
    assert!(run(merge(checkpoint, &named)).status.success());
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&folder.join("again")) == weights(&folder.join("merged")));
}

#[test]
fn a_run_reads_prompts_with_the_beginning_that_it_was_trained_with() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    write_pretrained_model(&folder.join("base"));
    let first_tokens = |run: &str| {
        let lists = folder.join("lists.jsonl");
        item_nll(folder, run, &["--lists", lists.to_str().unwrap()]);
        let lists = fs::read_to_string(lists).unwrap();
        let first = |line: &str| {
            let list: serde_json::Value = serde_json::from_str(line).unwrap();
            list["prompt"][0].as_u64().unwrap()
        };
        lists.lines().map(first).collect::<Vec<_>>()
    };
    train(folder, "plain", &[]);
    let plain = first_tokens("plain");
    assert!(!plain.contains(&0));

    edit(&folder.join("base/tokenizer.json"), |tokenizer| {
        let mark = "<|endoftext|>";
        let text = |id: &str| serde_json::json!({"Sequence": {"id": id, "type_id": 0}});
        tokenizer["post_processor"] = serde_json::json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": mark, "type_id": 0}}, text("A")],
            "pair": [text("A"), text("B")],
            "special_tokens": {mark: {"id": mark, "ids": [0], "tokens": [mark]}},
        });
    });
    train(folder, "begun", &[]);
    assert!(first_tokens("begun").iter().all(|&token| token == 0));
    // As runs were kept that were trained without.
    edit(&folder.join("begun/training.json"), |settings| {
        let tokenizer = settings["tokenizer"].as_object_mut().unwrap();
        assert_eq!(tokenizer.remove("begins"), Some(true.into()));
    });
    assert_eq!(first_tokens("begun"), plain);
}

#[test]
fn the_layers_that_get_adapters_are_named_with_spaces_commas_or_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    write_pretrained_model(&folder.join("base"));
    let option = "--lora-targets";
    for (run, targets) in [
        ("spaces", &[option, "q_proj", "up_proj"][..]),
        ("commas", &[option, "q_proj,up_proj"]),
        ("both", &[option, "q_proj,", "up_proj"]),
        ("quoted", &[option, "q_proj up_proj"]),
        (
            "repeated",
            &[option, "q_proj", option, "up_proj", option, "q_proj"],
        ),
    ] {
        train(folder, run, &[targets, &["--samples", "4"]].concat());
        let settings: serde_json::Value =
            msl::io::json::read_json(&folder.join(run).join("training.json")).unwrap();
        assert_eq!(
            settings["adapter"]["targets"],
            serde_json::json!(["q_proj", "up_proj"]),
            "{run}"
        );
    }
    let command = [
        "train", "--data", ".", "--model", "base", "--output", "run", option, "c_attn",
    ];
    let refused = errors(&msl(folder, &command));
    assert!(
        refused.contains("c_attn") && refused.contains("gate_proj"),
        "{refused}"
    );
    let command = [
        "train",
        "--data",
        ".",
        "--model",
        "base",
        "--output",
        "run",
        "--lora-rank",
    ];
    let refused = errors(&msl(folder, &[&command[..], &["100000000"]].concat()));
    assert!(refused.contains("rank of the adapters"), "{refused}");
}

#[test]
fn a_merged_model_has_the_type_of_its_base_unless_another_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    write_pretrained_model(&folder.join("base"));
    train(folder, "run", &["--samples", "4"]);
    for (options, dtype, name) in [
        (&[][..], DType::BF16, "bfloat16"),
        (&["--dtype", "stored"], DType::BF16, "bfloat16"),
        (&["--dtype", "f16"], DType::F16, "float16"),
        (&["--dtype", "f32"], DType::F32, "float32"),
    ] {
        let command = [
            &["merge", "run", "--overwrite", "--output", "merged"],
            options,
        ]
        .concat();
        let output = msl(folder, &command);
        assert!(output.status.success(), "{}", errors(&output));
        let weights =
            safetensors::load(folder.join("merged/model.safetensors"), &Device::Cpu).unwrap();
        assert!(
            weights.values().all(|weight| weight.dtype() == dtype),
            "{options:?}"
        );
        let config: serde_json::Value =
            msl::io::json::read_json(&folder.join("merged/config.json")).unwrap();
        assert_eq!(config["torch_dtype"], name);
    }
    // Adapters that no run knows the model of are added wherever they are told to be.
    let step = msl(folder, &["merge", "run", "--output", "elsewhere"]);
    assert!(!errors(&step).contains("warning"), "{}", errors(&step));
    let checkpoint = crate::running::last_checkpoint(&folder.join("run"));
    fs::rename(checkpoint, folder.join("adapters")).unwrap();
    let command = [
        "merge", "adapters", "--model", "merged", "--output", "twice",
    ];
    let said = errors(&msl(folder, &command));
    assert!(said.contains("warning: merged was merged"), "{said}");
}

#[test]
fn rows_longer_than_the_context_of_the_model_are_counted_in_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    let base = folder.join("base");
    write_pretrained_model(&base);
    let warned = |command: &[&str], said: &[&str]| {
        let output = msl(folder, command);
        let errors = errors(&output);
        assert!(output.status.success(), "{errors}");
        let warned = errors.contains("max_position_embeddings");
        assert_eq!(warned, !said.is_empty(), "{command:?}: {errors}");
        assert!(
            said.iter().all(|said| errors.contains(said)),
            "{command:?}: {errors}"
        );
    };
    let train = "train --data . --model base --prompt titles --loss msl --epochs 1 --overwrite --output run";
    let train: Vec<&str> = train.split_whitespace().collect();
    warned(&train, &[]);
    edit(&base.join("config.json"), |config| {
        config["max_position_embeddings"] = 4.into()
    });
    warned(&train, &["48 of 48 rows", "4 tokens"]);
    warned(&["resume", "run"], &["48 of 48 rows"]);
    warned(&["evaluate", "run"], &["12 of 12 rows"]);
    warned(&["recommend", "run", "The Sea Book 0"], &["1 of 1 rows"]);
}

#[test]
fn every_command_says_which_files_it_read_the_model_from() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    write_pretrained_model(&folder.join("base"));
    let says = |command: &[&str], said: &[&str]| {
        let output = msl(folder, command);
        let errors = errors(&output);
        assert!(output.status.success(), "{errors}");
        assert!(
            said.iter().all(|said| errors.contains(said)),
            "{command:?}: {errors}"
        );
    };
    let train = "train --data . --model base --prompt titles --loss msl --epochs 1 --output run";
    let train: Vec<&str> = train.split_whitespace().collect();
    let model = ["base/model.safetensors, 20 tensors in BF16"];
    let both = [model[0], "adapter_model.safetensors, 8 tensors in F32"];
    says(&train, &model);
    says(&["inspect", ".", "--model", "base"], &model);
    says(&["resume", "run"], &both);
    says(&["evaluate", "run"], &both);
    says(&["recommend", "run", "The Sea Book 0"], &both);
    says(&["merge", "run", "--output", "merged"], &both);
    let scratch = [
        &[
            "train", "--data", ".", "--loss", "msl", "--output", "scratch",
        ],
        &SMALL[..],
    ]
    .concat();
    says(&scratch, &[]);
    says(
        &["evaluate", "scratch"],
        &["model.safetensors, 11 tensors in F32"],
    );
}
