//! What the binary says to bad input, and that it leaves everything as it was.

use std::{fs, path::Path};

use candle_core::{Device, safetensors};

use crate::running::{SMALL, errors, json, last_checkpoint, msl, write_catalogue};

/// Fails to train on a folder, and gives what was said.
fn refused(folder: &Path, options: &[&str]) -> String {
    let base = ["train", "--data", ".", "--output", "run", "--loss", "msl"];
    let output = msl(folder, &[&base[..], &SMALL, options].concat());
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    assert!(!folder.join("run").exists(), "a run was left behind");
    let left_over = fs::read_dir(folder).unwrap().any(|entry| {
        entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("partial")
    });
    assert!(!left_over, "half a run was left behind");
    errors(&output)
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}

#[test]
fn malformed_files_are_named_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        write_catalogue(folder.path());
        fs::write(folder.path().join(name), text).unwrap();
    };
    write("id2name4Rec.json", "{\"1\": \"A\",\n \"2\": 7}");
    assert_says(
        &refused(folder.path(), &[]),
        &["id2name4Rec.json, line 2", "expected"],
    );
    write("id2name4Rec.json", "{}");
    assert_says(
        &refused(folder.path(), &[]),
        &["id2name4Rec.json", "no item"],
    );
    write(
        "train.csv",
        "user_id,item_ids,timestamp\n1,\"[1, 2]\",5\n2,\"[1; 2]\",5\n",
    );
    assert_says(
        &refused(folder.path(), &[]),
        &["train.csv, line 3", "expected item_ids to be a list"],
    );
    write("train.csv", "user_id,item_ids,timestamp\n1,\"[1, 99]\",5\n");
    assert_says(
        &refused(folder.path(), &["--strict"]),
        &["train.csv, line 2", "item \"99\" is not in the catalogue"],
    );
    fs::remove_file(folder.path().join("train.csv")).unwrap();
    assert_says(
        &refused(folder.path(), &[]),
        &["expected a file train*.csv"],
    );
}

#[test]
fn a_title_of_no_tokens_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    // It knows the one word "Sea", and says nothing of others.
    let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": {"</s>": 0, "S": 1}, "merges": []}}"#;
    fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    let message = refused(folder.path(), &["--tokenizer", "tokenizer.json"]);
    assert_says(&message, &["the title of item", "tokenizes to nothing"]);
    assert_says(
        &refused(
            folder.path(),
            &["--tokenizer", "tokenizer.json", "--end-token", "<end>"],
        ),
        &["no token \"<end>\""],
    );
    assert_says(
        &refused(folder.path(), &["--tokenizer", "nowhere.json"]),
        &["nowhere.json"],
    );
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    assert_says(&refused(folder.path(), &["--speed", "9"]), &["--speed"]);
    assert_says(
        &refused(folder.path(), &["--samples", "0"]),
        &["--samples 0"],
    );
    assert_says(
        &refused(folder.path(), &["--temperature", "0"]),
        &["temperature", "positive"],
    );
    // A run could not keep them: JSON has no such numbers.
    for option in [
        "--learning-rate",
        "--weight-decay",
        "--clip",
        "--temperature",
        "--eta",
        "--alpha",
        "--initial-temperature",
        "--bear-xi",
        "--bear-lambda",
        "--lora-alpha",
        "--lora-dropout",
    ] {
        for value in ["NaN", "inf"] {
            assert_says(&refused(folder.path(), &[option, value]), &[option]);
        }
    }
    let clamp = ["--clamp", "1", "inf"];
    assert_says(&refused(folder.path(), &clamp), &["--clamp"]);
    // Given twice, an option is an error rather than a guess.
    assert_says(&refused(folder.path(), &["--heads", "3"]), &["--heads"]);
    assert_says(
        &refused(
            folder.path(),
            &["--vocabulary", "10", "--train", "nowhere.csv"],
        ),
        &["nowhere.csv"],
    );
    // What cannot be done is not done in another way.
    for options in [
        &["--save-every", "0"][..],
        &["--patience", "0", "--validation", "4"],
        &["--vocabulary", "256"],
    ] {
        assert_says(&refused(folder.path(), options), &[options[0], "at least"]);
    }
    for (command, option) in [
        (&["evaluate", "run"][..], "--beams"),
        (&["evaluate", "run"], "--batch-size"),
        (&["recommend", "run", "Emma"], "--beams"),
        (&["recommend", "run", "Emma"], "--top"),
        (&["demo"], "--epochs"),
    ] {
        let said = errors(&msl(folder.path(), &[command, &[option, "0"]].concat()));
        assert_says(&said, &[option, "at least 1"]);
    }
}

#[test]
fn options_that_would_be_ignored_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    for (command, asked) in [
        ("export run --output lines --device cuda:7", "--device"),
        ("recommend run Emma --batch-size 4", "--users"),
        ("recommend run --users u.csv --output o --json", "--json"),
    ] {
        let command: Vec<&str> = command.split(' ').collect();
        assert_says(&errors(&msl(folder.path(), &command)), &[asked]);
    }
    for (options, asked) in [
        (["--lora-rank", "4"], "--model"),
        (["--lora-targets", "q_proj"], "--model"),
        (["--dtype", "bf16"], "--model"),
        (["--patience", "3"], "--validation"),
        (["--bear-beams", "5"], "--loss bear"),
        (["--bear-lambda", "0.5"], "--loss bear"),
        (["--bear-xi", "2"], "--loss bear"),
        (["--end-token", "<stop>"], "--tokenizer or --model"),
        (["--history", "5"], "--history is for other formats"),
        (
            ["--title-column", "title"],
            "--title-column is for other formats",
        ),
        (["--eta", "0.3"], "--eta is for"),
        (["--alpha", "0.3"], "--alpha is for"),
        (["--initial-temperature", "2"], "--initial-temp"),
        (["--temperature-warm-up", "3"], "--temperature-warm-up"),
    ] {
        assert_says(&refused(folder.path(), &options), &[asked]);
    }
    for (options, asked) in [
        (&["--clamp", "1", "2"][..], "--clamp is for"),
        (&["--allow-degenerate"], "--allow-degenerate is for"),
        (&["--prompt", "titles", "--noun", "film"], "--prompt alpaca"),
        (&["--prompt", "titles", "--verb", "seen"], "--prompt alpaca"),
        (
            &["--vocabulary", "300", "--tokenizer", "x.json"],
            "cannot be used with",
        ),
        (
            &["--model", "smollm2", "--pretraining-epochs", "2"],
            "cannot be used with",
        ),
    ] {
        assert_says(&refused(folder.path(), options), &[asked]);
    }
    let said = |command: &[&str]| errors(&msl(folder.path(), command));
    let train = ["train", "--data", ".", "--output", "run"];
    let temperature = ["--temperature", "2"];
    assert_says(
        &said(&[&train[..], &temperature].concat()),
        &["--temperature", "--loss msl", "--initial-temperature"],
    );
    assert_says(
        &said(&[&train[..], &["--scope", "branching", "--allow-degenerate"]].concat()),
        &["--allow-degenerate is for --scope root"],
    );
    assert_says(
        &said(&[&train[..], &["--loss", "lml", "--read-unary-tail"]].concat()),
        &["--read-unary-tail", "--loss lml"],
    );
    assert_says(
        &said(&["inspect", ".", "--title-column", "title"]),
        &["--title-column is for other formats"],
    );
    let adaptive = ["--loss", "bear-ats"];
    assert_says(
        &said(&[&train[..], &adaptive, &temperature].concat()),
        &["--temperature", "--loss bear", "--initial-temperature"],
    );
    assert_says(
        &said(&["inspect", ".", "--end-token", "<stop>"]),
        &["--tokenizer or --model"],
    );
}

#[test]
fn inspect_takes_the_eta_that_train_takes() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let train = ["train", "--data", ".", "--output", "run"];
    for eta in ["--eta=nan", "--eta=inf", "--eta=-1", "--eta=0", "--eta=2"] {
        for command in [&["inspect", "."][..], &train] {
            let output = msl(folder.path(), &[command, &[eta]].concat());
            assert!(!output.status.success() && output.stdout.is_empty());
            assert_says(&errors(&output), &["above 0 and at most 1"]);
        }
    }
    let output = msl(folder.path(), &["inspect", ".", "--eta", "1"]);
    assert!(output.status.success(), "{}", errors(&output));
}

#[test]
fn a_vocabulary_of_any_size_is_no_more_than_the_titles_can_fill() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let inspect = |vocabulary: &str| {
        let output = msl(
            folder.path(),
            &["inspect", ".", "--json", "--vocabulary", vocabulary],
        );
        json(&output)["vocabulary"].clone()
    };
    assert_eq!(inspect("4611686018427387904"), inspect("100000"));
}

#[test]
fn an_exact_search_by_another_score_is_refused_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let exact = ["evaluate", "nowhere", "--search", "exact"];
    for score in [["--length-penalty", "1"], ["--normalise", "vocabulary"]] {
        let output = msl(folder.path(), &[&exact[..], &score].concat());
        assert_says(&errors(&output), &["--search exact ranks"]);
    }
}

#[test]
fn a_training_that_diverges_leaves_a_run_that_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let train =
        "train --data . --output run --loss msl --validation 8 --save-every 1 --learning-rate 1e39";
    let train: Vec<&str> = train.split_whitespace().collect();
    let message = errors(&msl(folder.path(), &[&train[..], &SMALL].concat()));
    assert_says(
        &message,
        &["validation rows after step 1", "--learning-rate"],
    );
    let evaluated = msl(folder.path(), &["evaluate", "run"]);
    assert!(evaluated.status.success(), "{}", errors(&evaluated));
}

#[test]
fn a_scope_that_is_not_defined_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let output = msl(
        folder.path(),
        &["train", "--data", ".", "--output", "run", "--loss", "ats"],
    );
    assert!(!output.status.success() && !folder.path().join("run").exists());
    assert_says(&errors(&output), &["η·n", "branching"]);
}

#[test]
fn a_run_is_not_written_over_unasked() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    fs::create_dir(folder.path().join("run")).unwrap();
    fs::write(folder.path().join("run/file"), "old").unwrap();
    let options = ["train", "--data", ".", "--output", "run", "--loss", "msl"];
    let train = |more: &[&str]| msl(folder.path(), &[&options[..], &SMALL, more].concat());
    assert_says(&errors(&train(&[])), &["run already exists", "--overwrite"]);
    // Asked for, but it is no run.
    assert_says(
        &errors(&train(&["--overwrite"])),
        &["run is neither the folder of a run", "another --output"],
    );
    let run = folder.path().join("run");
    assert_eq!(fs::read_to_string(run.join("file")).unwrap(), "old");
    fs::remove_dir_all(&run).unwrap();
    assert!(train(&[]).status.success());
    let weights = || fs::read(last_checkpoint(&run).join("model.safetensors")).unwrap();
    let old = weights();
    // Asked for, but failing: the old run stays.
    let failing = ["--overwrite", "--train", "nowhere.csv"];
    assert!(!train(&failing).status.success());
    assert!(weights() == old);
    fs::write(run.join("notes.txt"), "mine").unwrap();
    assert_says(&errors(&train(&["--overwrite"])), &["\"notes.txt\""]);
    fs::remove_file(run.join("notes.txt")).unwrap();
    assert!(train(&["--overwrite", "--seed", "7"]).status.success());
    assert!(weights() != old);
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let train = ["train", "--data", ".", "--output", "run", "--loss", "msl"];
    assert!(
        msl(folder.path(), &[&train[..], &SMALL].concat())
            .status
            .success()
    );
    let evaluate = || {
        let output = msl(folder.path(), &["evaluate", "run", "--data", "."]);
        assert!(!output.status.success() && output.stdout.is_empty());
        errors(&output)
    };
    let config = last_checkpoint(&folder.path().join("run")).join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("\"intermediate_size\": 32", "\"intermediate_size\": 48"),
    )
    .unwrap();
    assert_says(
        &evaluate(),
        &[
            "model.layers.0.mlp.gate_proj.weight",
            "[32, 16]",
            "[48, 16]",
        ],
    );
    fs::write(
        &config,
        text.replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2"),
    )
    .unwrap();
    assert_says(&evaluate(), &["there is no tensor model.layers.1"]);
    fs::write(
        &config,
        text.replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 0"),
    )
    .unwrap();
    assert_says(&evaluate(), &["has no tensor model.layers.0"]);
    fs::write(&config, text.replace("\"llama\"", "\"mamba\"")).unwrap();
    assert_says(&evaluate(), &["mamba", "llama"]);
    fs::write(&config, "{").unwrap();
    assert_says(&evaluate(), &["config.json"]);
    fs::write(&config, text).unwrap();

    let titles = folder.path().join("id2name4Rec.json");
    let renamed = fs::read_to_string(&titles)
        .unwrap()
        .replace("Sea Book 0", "Sea Book 9");
    fs::write(titles, renamed).unwrap();
    assert_says(&evaluate(), &["another catalogue"]);
    assert_says(
        &errors(&msl(folder.path(), &["evaluate", "nowhere", "--data", "."])),
        &["nowhere is no folder"],
    );
}

#[test]
fn weights_that_are_no_numbers_are_refused_with_the_run_that_has_them() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let train = ["train", "--data", ".", "--output", "run", "--loss", "msl"];
    let trained = msl(folder.path(), &[&train[..], &SMALL].concat());
    assert!(trained.status.success(), "{}", errors(&trained));
    let file = last_checkpoint(&folder.path().join("run")).join("model.safetensors");
    let mut weights = safetensors::load(&file, &Device::Cpu).unwrap();
    let norm = weights.get_mut("model.norm.weight").unwrap();
    *norm = (&*norm * f64::NAN).unwrap();
    safetensors::save(&weights, &file).unwrap();
    let output = msl(folder.path(), &["recommend", "run", "The Sea Book 0"]);
    assert!(!output.status.success());
    assert_says(&errors(&output), &["error: run: ", "is NaN"]);
    let output = msl(folder.path(), &["merge", "run", "--output", "merged"]);
    assert!(!output.status.success() && !folder.path().join("merged").exists());
    assert_says(
        &errors(&output),
        &["error: run holds", "model.norm.weight is not finite"],
    );
}
