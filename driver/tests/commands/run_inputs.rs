//! A run knows what it was made with, and finds it where it has moved.

use std::{fs, path::Path};

use crate::running::{
    SMALL, errors, json, last_checkpoint, msl, write_catalogue, write_pretrained_model,
};

/// A folder with data, a model and a run of adapters to it.
fn with_adapters() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    write_catalogue(&folder.path().join("data"));
    write_pretrained_model(&folder.path().join("base"));
    let train = "train --data data --model base --output run --loss msl --prompt titles --epochs 2 --batch-size 16 \
                 --learning-rate 1e-2";
    let train: Vec<&str> = train.split_whitespace().collect();
    let trained = msl(folder.path(), &train);
    assert!(trained.status.success(), "{}", errors(&trained));
    folder
}

/// Fails, and says all of these.
fn refused(folder: &Path, command: &[&str], expected: &[&str]) {
    let output = msl(folder, command);
    let said = errors(&output);
    assert!(!output.status.success(), "{command:?}");
    for part in expected {
        assert!(
            said.contains(part),
            "{command:?}: expected {part:?} in: {said}"
        );
    }
}

#[test]
fn data_and_models_that_moved_are_found_where_the_command_line_says() {
    let folder = with_adapters();
    let folder = folder.path();
    let evaluated = json(&msl(folder, &["evaluate", "run", "--json"]));
    fs::rename(folder.join("data"), folder.join("data2")).unwrap();
    let title = "The Sea Book 0";
    let commands: [&[&str]; 3] = [
        &["evaluate", "run"],
        &["recommend", "run", title],
        &["resume", "run"],
    ];
    for command in commands {
        refused(folder, command, &["the data of run", "--data"]);
    }
    fs::rename(folder.join("base"), folder.join("base2")).unwrap();
    let model = ["--model", "base2"];
    for command in commands {
        let data = [command, &["--data", "data2"]].concat();
        refused(folder, &data, &["the pretrained model of run", "--model"]);
        let both = msl(folder, &[&data[..], &model].concat());
        assert!(both.status.success(), "{command:?}: {}", errors(&both));
    }
    refused(
        folder,
        &["merge", "run", "--output", "merged"],
        &["--model"],
    );
    let merge = ["merge", "run", "--output", "merged", "--model", "base2"];
    assert!(msl(folder, &merge).status.success());
    let again = json(&msl(
        folder,
        &[
            "evaluate", "run", "--data", "data2", "--model", "base2", "--json",
        ],
    ));
    assert_eq!(
        again["rows"][2]["item_nll"],
        evaluated["rows"][2]["item_nll"]
    );
    assert!(msl(folder, &["report", "run"]).status.success());
}

#[test]
fn adapters_are_not_added_to_a_model_that_has_changed_since() {
    let folder = with_adapters();
    let folder = folder.path();
    let base = folder.join("base/model.safetensors");
    // The model that is merged into is read.
    for output in ["base", "run", "base/", "run/../base"] {
        let merge = ["merge", "run", "--output", output, "--overwrite"];
        assert!(!msl(folder, &merge).status.success(), "{output}");
    }
    let weights = fs::read(&base).unwrap();
    assert!(
        msl(folder, &["merge", "run", "--output", "merged"])
            .status
            .success()
    );
    assert!(
        msl(
            folder,
            &["merge", "run", "--output", "merged", "--overwrite"]
        )
        .status
        .success()
    );
    fs::copy(folder.join("merged/model.safetensors"), &base).unwrap();
    let expected = ["belong to another model", "--model"];
    for command in [
        &["evaluate", "run"][..],
        &["recommend", "run", "The Sea Book 0"],
        &["resume", "run"],
        &["merge", "run", "--output", "twice"],
    ] {
        refused(folder, command, &expected);
    }
    let checkpoint = last_checkpoint(&folder.join("run"));
    let checkpoint = checkpoint.to_str().unwrap();
    refused(
        folder,
        &["merge", checkpoint, "--output", "twice"],
        &expected,
    );
    // On purpose, out of the run.
    let copied = msl::io::json::read_json::<serde_json::Value>(
        &last_checkpoint(&folder.join("run")).join("adapter_config.json"),
    );
    fs::create_dir(folder.join("adapters")).unwrap();
    msl::io::json::write_json(
        &folder.join("adapters/adapter_config.json"),
        &copied.unwrap(),
    )
    .unwrap();
    let tensors = Path::new(checkpoint).join("adapter_model.safetensors");
    fs::copy(tensors, folder.join("adapters/adapter_model.safetensors")).unwrap();
    assert!(
        msl(folder, &["merge", "adapters", "--output", "twice"])
            .status
            .success()
    );
    fs::write(&base, weights).unwrap();
    assert!(msl(folder, &["evaluate", "run"]).status.success());
}

#[test]
fn a_run_does_not_go_on_with_other_rows_titles_or_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    let train = ["train", "--data", ".", "--output", "run", "--loss", "msl"];
    assert!(msl(folder, &[&train[..], &SMALL].concat()).status.success());
    let changed = |name: &str, from: &str, to: &str, commands: &[&str], expected: &[&str]| {
        let path = folder.join(name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        for command in commands {
            let command: Vec<&str> = command.split(' ').collect();
            refused(folder, &command, expected);
        }
        fs::write(&path, text).unwrap();
    };
    // A row that is trained on matters to who trains alone.
    changed(
        "train.csv",
        "[1, 2, 3]",
        "[4, 2, 3]",
        &["resume run"],
        &["other rows"],
    );
    let all = ["resume run", "evaluate run", "recommend run Sea"];
    // The two books of one title: the trie is the same in either order.
    changed(
        "id2name4Rec.json",
        "Sea Book 0",
        "Sea Book 00",
        &all,
        &["another catalogue", "--data"],
    );
    let tokenizer = last_checkpoint(Path::new(folder).join("run").as_path()).join("tokenizer.json");
    let tokenizer = tokenizer
        .strip_prefix(folder)
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    changed(
        &tokenizer,
        "\"version\"",
        " \"version\"",
        &all,
        &["its tokenizer is not"],
    );
    for command in all {
        let command: Vec<&str> = command.split(' ').collect();
        let output = msl(folder, &command);
        assert!(output.status.success(), "{}", errors(&output));
    }
}

#[test]
fn the_state_of_another_step_is_refused() {
    let folder = with_adapters();
    let folder = folder.path();
    let checkpoint = last_checkpoint(&folder.join("run"));
    let file = checkpoint.join("state.json");
    let state: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    for (name, value) in [
        ("step", 1.into()),
        ("best", serde_json::json!({"step": 99, "item_nll": 1.5})),
    ] {
        let mut damaged = state.clone();
        damaged[name] = value;
        fs::write(&file, damaged.to_string()).unwrap();
        let expected = ["state.json is not the state of step"];
        refused(folder, &["resume", "run"], &expected);
    }
}
