//! What an evaluation tells apart: targets that occur in training rows and targets that do not, and what beam search
//! prunes.

use std::{fs, path::Path};

use serde_json::{Value, json as value};

use crate::running::{SMALL, errors, json, line, msl, write_catalogue};

/// The training rows that hold none but the first twenty items. Of the twelve test targets five occur in none of them.
fn write_few_training_rows(folder: &Path) -> usize {
    write_catalogue(folder);
    let rows = fs::read_to_string(folder.join("train.csv")).unwrap();
    let last_item = |row: &str| row.split([' ', ']']).nth(2)?.parse::<u64>().ok();
    let kept = |row: &&str| last_item(row).is_none_or(|item| item <= 20);
    let rows: Vec<&str> = rows.lines().filter(kept).collect();
    fs::write(folder.join("train.csv"), rows.join("\n") + "\n").unwrap();
    rows.len() - 1
}

fn train(folder: &Path, options: &[&str]) {
    let base = ["train", "--data", ".", "--output", "run", "--loss", "msl"];
    let output = msl(folder, &[&base[..], options, &SMALL].concat());
    assert!(output.status.success(), "{}", errors(&output));
}

#[test]
fn targets_in_training_rows_are_told_apart_from_targets_in_none() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let training_rows = write_few_training_rows(folder);
    train(folder, &[]);
    let counts = value!({"in_training": 7, "not_in_training": 5});

    let inspected = json(&msl(folder, &["inspect", ".", "--json"]));
    assert_eq!(inspected["test_targets"], counts);
    let none = value!({"in_training": 0, "not_in_training": 0});
    assert_eq!(inspected["validation_targets"], none);
    let table = String::from_utf8(msl(folder, &["inspect", "."]).stdout).unwrap();
    assert!(table.contains("7, 5 (41.7 %)"), "{table}");

    let evaluated = json(&msl(folder, &["evaluate", "run", "--json"]));
    let kept = fs::read(folder.join("run/evaluation.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&kept).unwrap(), evaluated);
    assert_eq!(evaluated["targets"], counts);
    for row in evaluated["rows"].as_array().unwrap() {
        for measure in ["hr@5", "ndcg@10", "item_nll"] {
            let of = |kind: &str| row["targets"][kind][measure].as_f64().unwrap();
            let mean = (7.0 * of("in_training") + 5.0 * of("not_in_training")) / 12.0;
            let whole = row[measure].as_f64().unwrap();
            assert!((mean - whole).abs() < 1e-9, "{measure} of {row}");
        }
    }
    // Nobody has chosen these five: by popularity each has one of as many chances as there are rows and titles.
    let nll = &line(&evaluated, "popularity")["targets"]["not_in_training"]["item_nll"];
    let expected = ((training_rows + 39) as f64).ln();
    assert!((nll.as_f64().unwrap() - expected).abs() < 1e-9, "{nll}");

    let table = String::from_utf8(msl(folder, &["evaluate", "run"]).stdout).unwrap();
    for text in [
        "HR@10, in training",
        "item NLL, not in training",
        "7 occur in a training row",
        "5 (41.7 %) in none",
    ] {
        assert!(table.contains(text), "{table}");
    }
    assert!(msl(folder, &["report", "run"]).status.success());
    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    for row in evaluated["rows"].as_array().unwrap() {
        let nll = row["targets"]["not_in_training"]["item_nll"].as_f64();
        let cell = format!("<td>{:.4}", nll.unwrap());
        assert!(page.contains(&cell), "{cell}");
    }
    assert!(page.contains("By whether the next item occurs"));

    // An evaluation from before they were told apart is shown as it is.
    let mut earlier = evaluated;
    earlier.as_object_mut().unwrap().remove("targets");
    for row in earlier["rows"].as_array_mut().unwrap() {
        row.as_object_mut().unwrap().remove("targets");
    }
    fs::write(folder.join("run/evaluation.json"), earlier.to_string()).unwrap();
    assert!(msl(folder, &["report", "run"]).status.success());
    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.contains("item graph") && !page.contains("By whether the next item occurs"));
}

#[test]
fn no_output_takes_the_place_of_a_run_s_own_evaluation() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    train(folder, &[]);
    let refused = |option: &str, file: &str| {
        let output = msl(folder, &["evaluate", "run", option, file]);
        assert!(!output.status.success());
        let said = errors(&output);
        assert!(said.contains(option) && said.contains(file), "{said}");
    };
    // Whether they are there yet or not.
    for evaluated in [false, true] {
        for (option, file) in [
            ("--lists", "run/ranks.csv"),
            ("--lists", "run/evaluation.json"),
            ("--lists", "run/../run/ranks.csv"),
            ("--ranks", "run/evaluation.json"),
        ] {
            refused(option, file);
        }
        assert_eq!(folder.join("run/evaluation.json").exists(), evaluated);
        let output = msl(folder, &["evaluate", "run", "--ranks", "run/ranks.csv"]);
        assert!(output.status.success(), "{}", errors(&output));
        assert!(folder.join("run/evaluation.json").exists());
    }
    // A second one, decoded in another way, keeps the first.
    assert!(
        msl(folder, &["evaluate", "run", "--beams", "3"])
            .status
            .success()
    );
    refused("--ranks", "run/ranks-1.csv");
}

#[test]
fn evaluations_that_end_at_one_moment_are_all_kept() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    train(folder, &[]);
    std::thread::scope(|scope| {
        for beams in ["1", "2", "3", "4", "5", "6"] {
            let evaluate = ["evaluate", "run", "--beams", beams];
            scope.spawn(move || assert!(msl(folder, &evaluate).status.success()));
        }
    });
    let kept = |number: usize| match number {
        0 => "run/evaluation.json".to_owned(),
        _ => format!("run/evaluation-{number}.json"),
    };
    let mut beams: Vec<u64> = (0..6)
        .map(|number| {
            let text = fs::read_to_string(folder.join(kept(number))).unwrap();
            let evaluation: Value = serde_json::from_str(&text).unwrap();
            evaluation["decoding"]["beams"].as_u64().unwrap()
        })
        .collect();
    beams.sort_unstable();
    assert_eq!(beams, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn the_rows_that_a_run_was_trained_on_are_the_ones_that_count() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    train(folder, &["--samples", "4"]);
    let evaluated = json(&msl(folder, &["evaluate", "run", "--json"]));
    // Four rows of three items: of twelve targets all but a few are new, though the data have all of them.
    let inspected = json(&msl(folder, &["inspect", ".", "--json"]));
    assert_eq!(inspected["test_targets"]["not_in_training"], 0);
    assert!(evaluated["targets"]["not_in_training"].as_u64().unwrap() > 0);
    let notes = evaluated["notes"].to_string();
    let note = "the 4 that the run was trained on. Popularity and the item graph count all 48";
    assert!(notes.contains(note), "{notes}");
}

#[test]
fn what_beam_search_prunes_of_the_true_top_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    train(folder, &[]);
    let ranks = |file: &str, search: &str| {
        let options = ["--search", search, "--beams", "2", "--json"];
        let evaluated = json(&msl(
            folder,
            &[&["evaluate", "run", "--ranks", file], &options[..]].concat(),
        ));
        let ranks = fs::read_to_string(folder.join(file)).unwrap();
        let ranks: Vec<bool> = (ranks.lines().skip(1))
            .map(|line| !line.split(',').nth(2).unwrap().is_empty())
            .collect();
        (evaluated, ranks)
    };
    let (_, beam) = ranks("beam.csv", "beam");
    let (evaluated, exact) = ranks("exact.csv", "exact");
    let in_top = exact.iter().filter(|found| **found).count();
    let pruned = beam
        .iter()
        .zip(&exact)
        .filter(|found| *found == (&false, &true));
    let expected = value!([{"top": 2, "in_top": in_top, "pruned": pruned.count()}]);
    let rows = evaluated["rows"].as_array().unwrap();
    assert_eq!(rows[3]["pruned"], expected);
    assert!(
        rows[4].get("pruned").is_none(),
        "the exact search prunes nothing"
    );

    let evaluate = ["evaluate", "run", "--search", "exact", "--beams", "12"];
    let table = String::from_utf8(msl(folder, &evaluate).stdout).unwrap();
    assert!(msl(folder, &["report", "run"]).status.success());
    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    for name in ["pruned of true top 10", "pruned of true top 12"] {
        let row = table.lines().find(|line| line.contains(name)).unwrap();
        let cell = row
            .split("  ")
            .find(|cell| cell.contains(" of ") && cell.contains('%'));
        let cell = cell.unwrap().trim();
        assert!(page.contains(name) && page.contains(cell), "{cell}");
    }
}
