//! What commands write to, and what they leave alone.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use crate::running::{SMALL, errors, json, last_checkpoint, msl, write_catalogue};

const TRAIN: [&str; 5] = ["train", "--data", ".", "--loss", "msl"];

fn train(folder: &Path, run: &str, more: &[&str]) -> std::process::Output {
    msl(
        folder,
        &[&TRAIN[..], &SMALL, &["--output", run], more].concat(),
    )
}

/// A folder with a catalogue and a finished run.
fn with_run() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let trained = train(folder.path(), "run", &[]);
    assert!(trained.status.success(), "{}", errors(&trained));
    folder
}

#[test]
fn overwriting_spares_everything_that_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir_all(folder.join("project/data")).unwrap();
    write_catalogue(&folder.join("project/data"));
    fs::write(folder.join("project/notes.txt"), "precious").unwrap();
    fs::write(folder.join("file"), "precious").unwrap();
    for output in [
        "project/data",
        "project",
        "project/",
        "project/data/..",
        "file",
    ] {
        let train = [
            "train",
            "--data",
            "project/data",
            "--loss",
            "msl",
            "--overwrite",
        ];
        let refused = msl(
            folder,
            &[&train[..], &SMALL, &["--output", output]].concat(),
        );
        assert!(!refused.status.success(), "{output}");
    }
    assert!(folder.join("project/data/train.csv").exists());
    assert!(folder.join("project/notes.txt").exists() && folder.join("file").is_file());
    // A checkpoint is a model that can be tuned, and its run would be replaced by what is made of it.
    let run = with_run();
    let model = last_checkpoint(&run.path().join("run"));
    let model = [
        "--model",
        model.to_str().unwrap(),
        "--overwrite",
        "--output",
        "run",
    ];
    let refused = msl(run.path(), &[&TRAIN[..], &model].concat());
    assert!(
        errors(&refused).contains("which is read"),
        "{}",
        errors(&refused)
    );
    assert!(run.path().join("run/training.json").exists());
}

#[test]
fn a_report_and_files_of_an_evaluation_take_the_place_of_nothing_that_is_read() {
    let folder = with_run();
    let folder = folder.path();
    let before = fs::read(folder.join("test.csv")).unwrap();
    #[cfg(unix)]
    {
        let made = Command::new("mkfifo").arg(folder.join("pipe")).status();
        assert!(made.unwrap().success());
        // Not waited for.
        for option in ["--ranks", "--lists"] {
            let refused = msl(folder, &["evaluate", "run", option, "pipe"]);
            assert!(
                errors(&refused).contains("it is a pipe"),
                "{}",
                errors(&refused)
            );
        }
    }
    for command in [
        &["evaluate", "run", "--ranks", "test.csv"][..],
        &["evaluate", "run", "--lists", "run/training.json"],
        &["evaluate", "run", "--ranks", "x.csv", "--lists", "x.csv"],
        &["evaluate", "run", "--ranks", "x.csv", "--lists", "./x.csv"],
        &["evaluate", "run", "--ranks", "id2name4Rec.json"],
        &["report", "run", "--output", "run/metrics.jsonl"],
        &["report", "run", "--output", "run"],
        &["report", "run", "--output", "/dev/full"],
    ] {
        let refused = msl(folder, command);
        assert!(!refused.status.success(), "{command:?}");
    }
    assert!(fs::read(folder.join("test.csv")).unwrap() == before);
    assert!(msl(folder, &["evaluate", "run"]).status.success());
}

#[test]
fn a_place_that_cannot_be_written_is_refused_before_the_evaluation() {
    let folder = with_run();
    for option in ["--lists", "--ranks"] {
        let refused = msl(folder.path(), &["evaluate", "run", option, "nowhere/file"]);
        let said = errors(&refused);
        assert!(
            !refused.status.success() && said.contains("nowhere/file"),
            "{said}"
        );
        assert!(!said.contains("evaluating"), "{said}");
    }
}

#[test]
#[cfg(unix)]
fn a_run_that_somebody_sent_writes_nothing_outside_its_folder() {
    let folder = with_run();
    let folder = folder.path();
    let victim = folder.join("victim");
    fs::write(&victim, "my key").unwrap();
    for (name, command) in [
        ("lock", "resume"),
        (".metrics.jsonl", "resume"),
        ("events.out.tfevents.msl", "resume"),
        ("ranks.csv", "evaluate"),
        ("evaluation.json", "report"),
    ] {
        let path = folder.join("run").join(name);
        let kept = fs::read(&path).ok();
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let refused = msl(folder, &[command, "run"]);
        assert!(
            errors(&refused).contains("a symbolic link"),
            "{}",
            errors(&refused)
        );
        assert_eq!(fs::read(&victim).unwrap(), b"my key");
        fs::remove_file(&path).unwrap();
        // A pipe would be waited for.
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success() && !msl(folder, &[command, "run"]).status.success());
        fs::remove_file(&path).unwrap();
        if let Some(kept) = kept {
            fs::write(&path, kept).unwrap();
        }
    }
}

#[test]
fn an_evaluation_says_how_it_was_decoded_and_keeps_one_that_was_decoded_otherwise() {
    let folder = with_run();
    let folder = folder.path();
    let evaluate = |more: &[&str]| {
        let command = [&["evaluate", "run", "--json"][..], more].concat();
        let output = msl(folder, &command);
        (json(&output), errors(&output))
    };
    let (first, _) = evaluate(&["--beams", "7"]);
    for (name, value) in [
        ("search", "beam".into()),
        ("beams", 7.into()),
        ("normalise", "trie".into()),
        ("rows", "test".into()),
        ("step", first["decoding"]["step"].clone()),
        ("temperature", serde_json::json!(1.0)),
    ] {
        assert_eq!(first["decoding"][name], value, "{name}");
    }
    evaluate(&["--beams", "7"]);
    assert!(!folder.join("run/evaluation-1.json").exists());
    let (_, said) = evaluate(&["--normalise", "vocabulary", "--temperature", "2"]);
    assert!(said.contains("evaluation-1.json and ranks-1.csv"), "{said}");
    let kept = fs::read(folder.join("run/evaluation-1.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    assert_eq!(kept["decoding"], first["decoding"]);
    assert!(folder.join("run/ranks-1.csv").exists());

    assert!(train(folder, "other", &["--seed", "7"]).status.success());
    json(&msl(folder, &["evaluate", "other", "--json"]));
    let reported = msl(folder, &["report", "run", "other", "--output", "page.html"]);
    assert!(reported.status.success(), "{}", errors(&reported));
    let page = fs::read_to_string(folder.join("page.html")).unwrap();
    for shown in [
        "How they were decoded",
        "vocabulary",
        "were not searched alike",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
    // Runs that were evaluated are runs still.
    assert!(train(folder, "run", &["--overwrite"]).status.success());
    assert!(!folder.join("run/evaluation-1.json").exists());
}

#[test]
fn a_run_that_goes_on_without_its_metrics_says_how_many_are_missing() {
    let folder = with_run();
    let folder = folder.path();
    fs::remove_file(folder.join("run/metrics.jsonl")).unwrap();
    let said = errors(&msl(folder, &["resume", "run"]));
    assert!(said.contains("metrics.jsonl has 0 of the"), "{said}");
}

#[test]
fn a_model_that_diverged_in_its_last_step_is_not_saved_and_one_that_was_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    let one_step = [
        "--batch-size",
        "64",
        "--epochs",
        "1",
        "--learning-rate",
        "1e25",
    ];
    let trained = msl(
        folder,
        &[&TRAIN[..], &SMALL[..10], &["--output", "run"], &one_step].concat(),
    );
    let said = errors(&trained);
    assert_eq!(trained.status.code(), Some(1), "{said}");
    assert!(
        said.contains("diverged by step 1") && said.contains("--learning-rate"),
        "{said}"
    );
    assert!(folder.join("run/checkpoint-0").exists());

    // As earlier versions wrote what they found: JSON has null for NaN.
    json(&msl(folder, &["evaluate", "run", "--json"]));
    let file = folder.join("run/evaluation.json");
    let mut evaluation: serde_json::Value = msl::io::json::read_json(&file).unwrap();
    for name in ["item_nll", "item_nll_error"] {
        evaluation["rows"][2][name] = serde_json::Value::Null;
    }
    msl::io::json::write_json(&file, &evaluation).unwrap();
    let reported = msl(folder, &["report", "run", "--output", "page.html"]);
    assert!(reported.status.success(), "{}", errors(&reported));
    let page = fs::read_to_string(folder.join("page.html")).unwrap();
    assert!(page.contains("NaN"));
}

#[test]
#[cfg(target_os = "linux")]
fn a_closed_or_full_output_ends_a_command_without_a_panic() {
    let folder = with_run();
    let run = |arguments: &[&str], output: Stdio, errors: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_msl"));
        command.current_dir(folder.path()).args(arguments);
        command.stdout(output).stderr(errors).output().unwrap()
    };
    let closed = || Stdio::from(std::io::pipe().unwrap().1);
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let report = ["report", "run", "--output", "page.html"];
    for command in [
        &["inspect", "."][..],
        &["inspect", ".", "--json"],
        &["evaluate", "run"],
        &["recommend", "run", "The Sea Book 0"],
        &report,
        &["--help"],
    ] {
        // As with head, which has seen enough.
        let ended = run(command, closed(), Stdio::piped());
        assert!(ended.status.success(), "{command:?}: {}", errors(&ended));
        let ended = run(command, full(), Stdio::piped());
        assert_eq!(
            ended.status.code(),
            Some(1),
            "{command:?}: {}",
            errors(&ended)
        );
        assert!(!errors(&ended).contains("panicked"), "{}", errors(&ended));
    }
    // A training goes on without a reader of its notes.
    let train = [&TRAIN[..], &SMALL, &["--output", "unwatched"]].concat();
    assert!(run(&train, closed(), closed()).status.success());
    assert!(folder.path().join("unwatched/checkpoint-6").exists());
}
