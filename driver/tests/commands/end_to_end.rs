//! The commands from end to end, on small catalogues.

use std::{fs, path::Path};

use crate::running::{SMALL, errors, json, last_checkpoint, line, msl, write_catalogue};
use candle_core::{Device, safetensors};
use msl::metrics::StepMetrics;

#[test]
fn a_trained_run_can_be_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    for loss in ["lml", "msl", "ats"] {
        let run = format!("runs/{loss}");
        let options = [
            "train",
            "--data",
            ".",
            "--output",
            &run,
            "--loss",
            loss,
            "--scope",
            "branching",
            "--json",
        ];
        let trained = json(&msl(folder.path(), &[&options[..], &SMALL].concat()));
        assert_eq!(trained["steps"], 6);

        let metrics = fs::read_to_string(folder.path().join(&run).join("metrics.jsonl")).unwrap();
        let metrics: Vec<StepMetrics> = metrics
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(
            metrics.iter().map(|step| step.step).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6]
        );
        assert!(
            metrics[5].loss < metrics[0].loss,
            "{loss}: {} then {}",
            metrics[0].loss,
            metrics[5].loss
        );
        assert!(
            metrics
                .iter()
                .all(|step| step.variance.is_some() && step.gradient_norm > 0.0 && step.rows > 0)
        );

        let evaluated = json(&msl(
            folder.path(),
            &["evaluate", &run, "--data", ".", "--json"],
        ));
        assert_eq!(evaluated["users"], 12);
        for baseline in ["uniform", "popularity"] {
            assert!(line(&evaluated, baseline)["item_nll"].as_f64().unwrap() > 0.0);
        }
        let model = line(&evaluated, &run);
        let nll = model["item_nll"].as_f64().unwrap();
        assert!(nll > 0.0 && nll < 5.0, "{loss}: {nll}");
        assert!(model["item_nll_error"].as_f64().unwrap() > 0.0);
        assert_eq!(model["temperature"], trained["temperature"]);
        check_ranks(&folder.path().join(&run).join("ranks.csv"), model);
    }
    let checkpoint = last_checkpoint(&folder.path().join("runs/msl"));
    let weights = safetensors::load(checkpoint.join("model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(
        weights["model.layers.0.self_attn.k_proj.weight"].dims(),
        [8, 16]
    );
}

/// Every user's rank and item NLL are there, and give the means that were reported.
fn check_ranks(file: &Path, model: &serde_json::Value) {
    let text = fs::read_to_string(file).unwrap();
    let lines: Vec<Vec<&str>> = (text.lines())
        .map(|line| line.split(',').collect())
        .collect();
    assert_eq!(lines[0], ["user_id", "item_id", "rank", "item_nll"]);
    let users = &lines[1..];
    let ids: Vec<&str> = users.iter().map(|line| line[0]).collect();
    let expected: Vec<String> = (48..60).map(|user| user.to_string()).collect();
    assert_eq!(ids, expected);
    let hits = (users.iter()).filter(|line| line[2].parse().is_ok_and(|rank: usize| rank <= 10));
    let hit_rate = hits.count() as f64 / users.len() as f64;
    assert!((model["hr@10"].as_f64().unwrap() - hit_rate).abs() < 1e-12);
    let item_nll: f64 = users
        .iter()
        .map(|line| line[3].parse::<f64>().unwrap())
        .sum();
    let error = model["item_nll"].as_f64().unwrap() - item_nll / users.len() as f64;
    assert!(error.abs() < 1e-9, "{error}");
}

#[test]
fn the_same_seed_gives_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let train = |run: &str, seed: &str| {
        let options = [
            "train",
            "--data",
            ".",
            "--output",
            run,
            "--loss",
            "msl",
            "--seed",
            seed,
            "--samples",
            "20",
        ];
        let output = msl(folder.path(), &[&options[..], &SMALL].concat());
        assert!(output.status.success(), "{}", errors(&output));
        fs::read(last_checkpoint(&folder.path().join(run)).join("model.safetensors")).unwrap()
    };
    let first = train("first", "3");
    assert!(first == train("second", "3"));
    assert!(first != train("third", "4"));
}

#[test]
fn the_demo_prints_one_object_or_one_table() {
    let folder = tempfile::tempdir().unwrap();
    let options = [
        "demo",
        "--training-rows",
        "64",
        "--test-rows",
        "10",
        "--epochs",
        "1",
    ];
    let demo = json(&msl(folder.path(), &[&options[..], &["--json"]].concat()));
    let names: Vec<&str> = demo["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["uniform", "popularity", "LML", "MSL τ=1", "MSL+ATS"]
    );
    let output = msl(folder.path(), &options);
    let table = String::from_utf8(output.stdout).unwrap();
    for word in [
        "HR@10",
        "NDCG@5",
        "item NLL",
        "temperature",
        "rows/s",
        "popularity",
        "MSL+ATS",
    ] {
        assert!(table.contains(word), "{table}");
    }
}
