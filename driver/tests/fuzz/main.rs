//! Damaged files of every format that `msl` reads: each is read, or refused with an error that names it or its folder. None
//! panics, hangs, or takes memory out of all proportion.
//!
//! Each case is damaged by a seed of its own, and they go on as long as there is time: `MSL_FUZZ_SECONDS=600` gives all
//! targets together ten minutes. The seed of a case that fails is in what the test says, `MSL_FUZZ_CASE=SEED` begins with it,
//! and its files are left in `target/tmp/fuzz`.

mod damage;
mod harness;
#[path = "../models/mod.rs"]
mod models;
#[allow(dead_code)]
#[path = "../commands/running.rs"]
mod running;

use std::{cell::OnceCell, fs, path::Path};

use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::Parser;
use msl::{
    commands::{self, arguments::Arguments},
    data::{arguments::DataArguments, dataset::Dataset, tokenizer::TextTokenizer},
    exchange::Alone,
    model::{Llama, LoraSettings, adapter, precision::Precision, pretrained::Pretrained},
    report::{ReportedRun, page},
};

use harness::fuzz;
use models::{converted, tokenizer, write_gguf, write_model};
use running::{SMALL, errors, last_checkpoint, msl, write_atomic_files, write_catalogue};

fn read_data(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        Dataset::read(&DataArguments::of(&entry?.path()), 1)?;
    }
    Ok(())
}

#[test]
fn damaged_atomic_files_are_read_or_refused_by_name() {
    let write = |folder: &Path| {
        let item = "item_id:token\tmovie_title:token_seq\nf1\tThe Sea\nf2\tA Wall\nf3\tGlass\n";
        let own = [
            "user_id:token\titem_id_list:token_seq\titem_id:token",
            "u1\tf1 f2\tf3",
            "u2\tf2\tf1",
        ];
        let shared = [
            "user_id:token\titem_id:token\ttimestamp:float",
            "u1\tf1\t1.5",
            "u1\tf2\t2e3",
        ];
        for (format, lines) in [("own", own), ("shared", shared)] {
            let folder = folder.join(format);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("x.item"), item).unwrap();
            for part in 1..=3 {
                let file = folder.join(format!("x.part{part}.inter"));
                fs::write(file, lines.join("\n")).unwrap();
            }
        }
        fs::create_dir(folder.join("whole")).unwrap();
        write_atomic_files(&folder.join("whole"));
    };
    fuzz(
        "damaged_atomic_files_are_read_or_refused_by_name",
        write,
        read_data,
    );
}

#[test]
fn damaged_files_of_the_paper_are_read_or_refused_by_name() {
    let write = |folder: &Path| {
        fs::create_dir(folder.join("paper")).unwrap();
        write_catalogue(&folder.join("paper"));
    };
    fuzz(
        "damaged_files_of_the_paper_are_read_or_refused_by_name",
        write,
        read_data,
    );
}

#[test]
fn damaged_files_of_an_index_are_read_or_refused_by_name() {
    let write = |folder: &Path| {
        let index = r#"{"1": ["<a_1>", "<b_1>"], "2": ["<a_1>", "<b_2>"], "3": "<a_2><b_1>"}"#;
        let items = r#"{"1": {"title": "The Sea"}, "2": {"title": "A Wall"}, "3": {"title": ""}}"#;
        let rows = "user_id,history_item_id,item_id\nu,\"['1', '2']\",3\nv,[2],1\n";
        for format in ["lists", "rows"] {
            fs::create_dir(folder.join(format)).unwrap();
            fs::write(folder.join(format).join("x.index.json"), index).unwrap();
            fs::write(folder.join(format).join("x.item.json"), items).unwrap();
        }
        let lists = r#"{"u": [1, "2", 3, 1], "v": [3, 2]}"#;
        fs::write(folder.join("lists/x.inter.json"), lists).unwrap();
        fs::write(folder.join("rows/train.csv"), rows).unwrap();
    };
    let read = |folder: &Path| {
        for entry in fs::read_dir(folder)? {
            Dataset::read(&DataArguments::of(&entry?.path()).with_defaults()?, 1)?;
        }
        Ok(())
    };
    fuzz(
        "damaged_files_of_an_index_are_read_or_refused_by_name",
        write,
        read,
    );
}

#[test]
fn a_damaged_tokenizer_is_read_or_refused_by_name() {
    let read = |folder: &Path| {
        let path = folder.join("tokenizer.json");
        let tokenizer = TextTokenizer::load(&path, None)?;
        tokenizer.vocabulary();
        // What is damaged may be found out only here, where no file is read: who calls names it.
        for text in [
            "\"The Sea\"",
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx 1984 \u{202e}é本\0",
        ] {
            let _ = tokenizer.encode_prompt(text);
        }
        tokenizer.save(&folder.join("kept.json"))
    };
    let write = |folder: &Path| tokenizer().save(&folder.join("tokenizer.json")).unwrap();
    fuzz(
        "a_damaged_tokenizer_is_read_or_refused_by_name",
        write,
        read,
    );
}

/// Reads a model, and has it read a prompt.
fn read_model(path: &Path) -> Result<()> {
    let (model, tokenizer) = Pretrained::open(path, None)?.read(Precision::F32, &Device::Cpu)?;
    let _ = tokenizer.encode_prompt("\"The Sea\"");
    use_model(&model)
}

fn use_model(model: &Llama) -> Result<()> {
    let last = model.config().vocab_size as u32 - 1;
    model.hidden(&Tensor::new(&[[0u32, last, 0]], &Device::Cpu)?)?;
    Ok(())
}

#[test]
fn a_damaged_model_folder_is_read_or_refused_by_name() {
    let write = |folder: &Path| {
        let (_, weights) = write_model(folder);
        let parts = folder.join("parts");
        fs::create_dir(&parts).unwrap();
        for file in ["config.json", "tokenizer.json"] {
            fs::copy(folder.join(file), parts.join(file)).unwrap();
        }
        let mut files = serde_json::Map::new();
        for (number, part) in weights.chunks(9).enumerate() {
            let name = format!("part-{number}.safetensors");
            files.extend(
                part.iter()
                    .map(|(tensor, _)| (tensor.clone(), name.clone().into())),
            );
            let part = part.iter().cloned().collect();
            candle_core::safetensors::save(&part, parts.join(name)).unwrap();
        }
        let index = serde_json::json!({ "weight_map": files });
        fs::write(
            parts.join("model.safetensors.index.json"),
            index.to_string(),
        )
        .unwrap();
    };
    let read = |folder: &Path| {
        let whole = read_model(folder);
        read_model(&folder.join("parts"))?;
        whole
    };
    fuzz(
        "a_damaged_model_folder_is_read_or_refused_by_name",
        write,
        read,
    );
}

#[test]
fn damaged_adapters_are_read_or_refused_by_name() {
    let write = |folder: &Path| {
        let base = folder.join("base");
        let adapters = folder.join("adapters");
        fs::create_dir(&base).unwrap();
        fs::create_dir(&adapters).unwrap();
        write_model(&base);
        let (mut model, _) = Pretrained::open(&base, None)
            .and_then(|model| model.read(Precision::F32, &Device::Cpu))
            .unwrap();
        model.adapt(&LoraSettings::default(), 1).unwrap();
        let own = model.config().vocab_size;
        let rows = model.initial_rows(own..own + 2, &[]).unwrap();
        model.add_tokens(own..own + 2, rows).unwrap();
        adapter::save(&adapters, &model, &base).unwrap();
    };
    let read = |folder: &Path| {
        let adapters = folder.join("adapters");
        adapter::base(&adapters)?;
        let base = folder.join("base");
        let device = Device::Cpu;
        let mut model = adapter::load_onto(&adapters, &base, None, Precision::F32, &device)?;
        use_model(&model)?;
        model.merged_weights()?;
        Ok(())
    };
    fuzz("damaged_adapters_are_read_or_refused_by_name", write, read);
}

#[test]
fn a_damaged_gguf_file_is_read_or_refused_by_name() {
    let write = |folder: &Path| {
        let (metadata, tensors) = converted(folder);
        for file in fs::read_dir(folder).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        write_gguf(&folder.join("model.gguf"), &metadata, &[], &tensors);
    };
    fuzz(
        "a_damaged_gguf_file_is_read_or_refused_by_name",
        write,
        read_model,
    );
}

/// A run that was trained and evaluated, and its data beside it.
fn write_run(folder: &Path) {
    let folder = folder.to_str().unwrap();
    let data = Path::new(folder).join("data");
    fs::create_dir(&data).unwrap();
    write_catalogue(&data);
    let train = [
        "train", "--loss", "msl", "--data", "data", "--output", "run",
    ];
    for arguments in [&[&train[..], &SMALL].concat()[..], &["evaluate", "run"]] {
        let output = msl(Path::new(folder), arguments);
        assert!(output.status.success(), "{}", errors(&output));
    }
}

fn command(arguments: &[&str]) -> Result<()> {
    commands::run(
        &Arguments::try_parse_from([&["msl"], arguments].concat())?,
        &Alone,
    )
}

#[test]
fn a_damaged_run_is_used_or_refused_by_name() {
    let told = OnceCell::new();
    let read = |folder: &Path| {
        let run = folder.join("run");
        let run = run.to_str().unwrap();
        command(&["recommend", run, "The Sea Book 0"])?;
        // With other settings it may be right to train for years.
        let settings = fs::read(folder.join("run/training.json"))?;
        if *told.get_or_init(|| settings.clone()) == settings {
            command(&["resume", run])?;
        }
        Ok(())
    };
    fuzz("a_damaged_run_is_used_or_refused_by_name", write_run, read);
}

#[test]
fn damaged_evaluations_are_reported_or_refused_by_name() {
    let write = |folder: &Path| {
        write_run(folder);
        fs::remove_dir_all(folder.join("data")).unwrap();
        fs::remove_dir_all(last_checkpoint(&folder.join("run"))).unwrap();
    };
    let read = |folder: &Path| {
        page(&ReportedRun::read_all(&[folder.join("run")])?)?;
        Ok(())
    };
    fuzz(
        "damaged_evaluations_are_reported_or_refused_by_name",
        write,
        read,
    );
}
