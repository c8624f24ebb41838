//! The commands from end to end, on small catalogues.

use std::{fs, path::Path};

use crate::running::{
    SMALL, errors, json, last_checkpoint, line, msl, write_atomic_files, write_catalogue,
};
use candle_core::{Device, safetensors};
use msl::train::metrics::StepMetrics;

#[test]
fn a_trained_run_can_be_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    for loss in ["lml", "msl", "ats", "bear", "bear-ats"] {
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
            "--learning-rate",
            "1e-2",
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
        // In six steps a model learns which tokens titles are made of, which the masks of the others know already.
        if loss == "lml" {
            assert!(metrics[5].loss < metrics[0].loss - 0.5);
        }
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
        for baseline in ["uniform", "popularity", "item graph"] {
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

#[test]
fn recommended_titles_have_the_probabilities_of_a_distribution_over_the_catalogue() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let train = ["train", "--data", ".", "--output", "run", "--loss", "msl"];
    succeed(&msl(folder.path(), &[&train[..], &SMALL].concat()));
    let recommend = |more: &[&str]| {
        let command = ["recommend", "run", "the sea book 0", "Unheard of", "--json"];
        json(&msl(folder.path(), &[&command[..], more].concat()))
    };
    // Forty books have 39 titles: with as many beams nothing is lost.
    let all = recommend(&["--top", "39"]);
    let all = all["recommended"].as_array().unwrap();
    let probabilities: Vec<f64> = (all.iter())
        .map(|line| line["probability"].as_f64().unwrap())
        .collect();
    assert_eq!(probabilities.len(), 39);
    assert!(probabilities.windows(2).all(|pair| pair[0] >= pair[1]));
    let sum: f64 = probabilities.iter().sum();
    assert!((sum - 1.0).abs() < 1e-4, "{sum}");
    let twins = all
        .iter()
        .filter(|line| line["items"].as_array().unwrap().len() == 2);
    assert_eq!(twins.count(), 1, "two books have one title");

    let unseen = recommend(&["--top", "38", "--beams", "39", "--unseen"]);
    let unseen = unseen["recommended"].as_array().unwrap();
    let seen = "The Sea Book 0";
    let expected = all.iter().filter(|line| line["title"] != seen);
    assert_eq!(unseen.len(), 38);
    for (found, expected) in unseen.iter().zip(expected) {
        assert_eq!(found["title"], expected["title"]);
        assert_eq!(found["probability"], expected["probability"]);
    }
}

#[test]
fn a_run_on_atomic_files_finds_its_data_again_and_is_chosen_by_validation() {
    let folder = tempfile::tempdir().unwrap();
    write_atomic_files(folder.path());
    let options = [
        "train",
        "--data",
        ".",
        "--output",
        "run",
        "--loss",
        "msl",
        "--validation",
        "20",
        "--save-every",
        "2",
        "--json",
    ];
    let trained = json(&msl(folder.path(), &[&options[..], &SMALL].concat()));
    let best = trained["best"]["step"].as_u64().unwrap();
    let validations = validations(&folder.path().join("run"));
    let lowest = validations
        .iter()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap();
    assert!(
        validations.len() >= 2 && lowest.0 == best,
        "{validations:?}"
    );

    let evaluate = |more: &[&str]| {
        let command = [
            "evaluate",
            folder.path().join("run").to_str().unwrap(),
            "--json",
        ]
        .map(str::to_owned);
        let command: Vec<&str> = (command.iter().map(String::as_str))
            .chain(more.iter().copied())
            .collect();
        // From elsewhere: the run knows where its data are.
        json(&msl(&std::env::temp_dir(), &command))
    };
    // Twenty of the thirty users were looked at in training; here all are.
    let validation = evaluate(&["--split", "validation"]);
    assert_eq!(
        (&validation["users"], &evaluate(&[])["users"]),
        (&30.into(), &30.into())
    );
    let name = validation["rows"][3]["name"].as_str().unwrap();
    assert!(name.ends_with(&format!("step {best}")), "{name}");

    // Beams enough for every title find what the exact search does, and that there was nothing to be missed.
    let lists = folder.path().join("lists.jsonl");
    let lists_option = ["--lists", lists.to_str().unwrap()];
    let exact = evaluate(&[&["--search", "exact", "--beams", "40"][..], &lists_option].concat());
    let (beam, exact, note) = (&exact["rows"][3], &exact["rows"][4], &exact["notes"][0]);
    for measure in ["hr@1", "hr@10", "ndcg@10", "item_nll"] {
        assert_eq!(beam[measure], exact[measure], "{measure}");
    }
    assert!(exact["model_tokens"].as_f64().unwrap() > 0.0);
    assert!(
        note.as_str().unwrap().ends_with("for 0.0 % of the users."),
        "{note}"
    );
    let lists = fs::read_to_string(lists).unwrap();
    assert_eq!(lists.lines().count(), 30);
    for line in lists.lines() {
        let list: serde_json::Value = serde_json::from_str(line).unwrap();
        let found = list["recommended"].as_array().unwrap();
        let probabilities = found
            .iter()
            .map(|found| found["log_probability"].as_f64().unwrap().exp());
        assert!((probabilities.sum::<f64>() - 1.0).abs() < 1e-3);
    }
}

/// The steps at which a run has looked at its validation rows, and what it saw.
fn validations(run: &Path) -> Vec<(u64, f64)> {
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    metrics
        .lines()
        .map(|line| serde_json::from_str::<StepMetrics>(line).unwrap())
        .filter_map(|step| Some((step.step as u64, step.validation_nll?)))
        .collect()
}

#[test]
fn patience_ends_a_training_when_the_validation_rows_get_no_better() {
    let folder = tempfile::tempdir().unwrap();
    write_atomic_files(folder.path());
    let train = |output: &str, patience: &[&str]| {
        // So large steps that it soon gets worse.
        let options = "train --data . --loss msl --validation 20 --save-every 2 --learning-rate 0.2 --json --output";
        let options: Vec<&str> = options.split_whitespace().collect();
        let all = [
            &options[..],
            &[output],
            patience,
            &SMALL[..12],
            &["--epochs", "9"],
        ]
        .concat();
        json(&msl(folder.path(), &all))
    };
    let whole = train("whole", &[]);
    let patient = train("patient", &["--patience", "3"]);
    // What the run that goes on to its end has seen says where a patient one stops.
    let validations = validations(&folder.path().join("whole"));
    let mut best = 0;
    let end = (0..validations.len()).find(|&validation| {
        best = if validations[validation].1 < validations[best].1 {
            validation
        } else {
            best
        };
        validation == best + 3
    });
    let end = validations[end.expect("it gets worse")].0;
    assert!(
        end < whole["steps"].as_u64().unwrap(),
        "it gets worse only at the end"
    );
    assert_eq!(patient["steps"], end);
    assert_eq!(patient["best"]["step"], validations[best].0);
    // What is kept is the best and the last, and going on with it is no step further.
    let resumed = json(&msl(folder.path(), &["resume", "patient", "--json"]));
    assert_eq!(resumed["steps"], patient["steps"]);
}

#[test]
fn a_catalogue_is_inspected_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let shape = json(&msl(folder.path(), &["inspect", ".", "--json"]));
    assert_eq!(
        (&shape["items"], &shape["titles"]),
        (&40.into(), &39.into())
    );
    assert_eq!(
        (&shape["training_rows"], &shape["test_rows"]),
        (&48.into(), &12.into())
    );
    // Every title begins alike.
    assert_eq!(shape["root_fan_out"], 1);
    assert_eq!(shape["ats"]["root_defined"], false);
    let table = String::from_utf8(msl(folder.path(), &["inspect", "."]).stdout).unwrap();
    for word in [
        "fan-out of the root",
        "unary",
        "not defined",
        "--scope branching",
    ] {
        assert!(table.contains(word), "{table}");
    }
}

fn succeed(output: &std::process::Output) {
    assert!(output.status.success(), "{}", errors(output));
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
fn a_model_that_is_pretrained_on_the_titles_begins_with_a_lower_loss() {
    let folder = tempfile::tempdir().unwrap();
    write_catalogue(folder.path());
    let first_loss = |run: &str, pretraining: &[&str]| {
        let options = ["train", "--data", ".", "--output", run, "--loss", "lml"];
        let options = [&options[..], &SMALL, pretraining, &["--json"]].concat();
        json(&msl(folder.path(), &options))["first_loss"]
            .as_f64()
            .unwrap()
    };
    let alone = first_loss("alone", &[]);
    let pretrained = first_loss("pretrained", &["--pretraining-epochs", "20"]);
    assert!(
        pretrained < alone - 1.0,
        "first loss {pretrained}, without pretraining {alone}"
    );
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
        "--pretraining-epochs",
        "1",
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
        [
            "uniform",
            "popularity",
            "item graph",
            "LML",
            "MSL τ=1",
            "MSL+ATS",
            "BEAR"
        ]
    );
    let output = msl(folder.path(), &options);
    let table = String::from_utf8(output.stdout).unwrap();
    let whole = |line: &&str| line.contains("HR@20") && !line.contains('–');
    assert!(table.lines().any(|line| whole(&line)), "{table}");
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
