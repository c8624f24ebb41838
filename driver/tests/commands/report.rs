//! The page of `msl report`, for runs that have everything and for runs that do not.

use std::{fs, path::Path, process::Output};

use serde_json::json as value;

use crate::running::{SMALL, errors, json, msl, write_catalogue};

fn train(folder: &Path, run: &str, options: &[&str]) {
    let base = ["train", "--data", ".", "--output", run];
    let output = msl(folder, &[&base[..], options, &SMALL].concat());
    assert!(output.status.success(), "{}", errors(&output));
}

fn report(folder: &Path, runs: &[&str]) -> Output {
    let output = ["--output", "page.html"];
    msl(folder, &[&["report"][..], runs, &output].concat())
}

fn page(folder: &Path, runs: &[&str]) -> String {
    let output = report(folder, runs);
    assert!(output.status.success(), "{}", errors(&output));
    fs::read_to_string(folder.join("page.html")).unwrap()
}

#[test]
fn a_page_takes_the_place_of_nothing_that_its_runs_need() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    train(folder, "msl", &["--loss", "msl"]);
    for file in ["train.csv", "id2name4Rec.json", "msl/training.json"] {
        let output = msl(folder, &["report", "msl", "--output", file]);
        assert!(errors(&output).contains(file), "{}", errors(&output));
    }
    page(folder, &["msl"]);
}

#[test]
fn runs_are_laid_beside_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    let noun = "<b>book</b> & co";
    train(
        folder,
        "msl",
        &["--loss", "msl", "--validation", "8", "--noun", noun],
    );
    train(
        folder,
        "ats",
        &["--scope", "branching", "--validation", "8", "--noun", noun],
    );
    let evaluated = ["msl", "ats"].map(|run| json(&msl(folder, &["evaluate", run, "--json"])));

    let page = page(folder, &["msl", "ats"]);
    // The measures are those that were evaluated, the pairs those of the files of ranks.
    for evaluation in &evaluated {
        for row in evaluation["rows"].as_array().unwrap() {
            for measure in ["hr@5", "ndcg@10", "item_nll"] {
                let shown = format!("<td>{:.4}", row[measure].as_f64().unwrap());
                assert!(page.contains(&shown), "{measure}: {shown}");
            }
        }
    }
    let nll = |run: usize| evaluated[run]["rows"][3]["item_nll"].as_f64().unwrap();
    let difference = format!("{:+.4}", nll(1) - nll(0));
    assert!(page.contains(&difference), "{difference}");
    // Six curves, three measures, two of the catalogue.
    assert_eq!(page.matches("<svg").count(), 11);
    // What differs comes before what both share.
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("no {text:?}"));
    assert!(place(">loss.scope<") < place("What all of them share"));
    assert!(place("What all of them share") < place(">training.seed<"));
    assert!(page.contains("12 users (test)"));
    assert!(!page.contains("<b>book") && page.contains("&lt;b&gt;book&lt;/b&gt; &amp; co"));
    assert!(!page.contains("has not been evaluated") && !page.contains("no steps yet"));
    // One file: nothing is fetched.
    for reference in ["<script", "<link", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(reference), "{reference}");
    }
}

#[test]
fn a_run_with_missing_parts_gives_a_page_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    train(folder, "lml", &["--loss", "lml"]);
    let page_of_one = page(folder, &["lml"]);
    assert!(page_of_one.contains("has not been evaluated yet"));
    assert!(page_of_one.contains("No run was evaluated on validation rows"));
    assert!(
        page_of_one.contains("Nothing was recorded"),
        "a chart of no validation"
    );
    assert!(page_of_one.contains("All settings"));

    // A run that was killed before its first step, beside one that is evaluated but has lost its ranks.
    train(folder, "killed", &["--loss", "msl"]);
    fs::remove_file(folder.join("killed/metrics.jsonl")).unwrap();
    train(folder, "msl", &["--loss", "msl"]);
    for run in ["lml", "msl"] {
        json(&msl(folder, &["evaluate", run, "--json"]));
    }
    fs::remove_file(folder.join("msl/ranks.csv")).unwrap();
    let page = page(folder, &["lml", "killed", "msl"]);
    assert!(page.contains("has no steps yet"));
    assert!(page.contains("without ranks.csv"));

    json(&msl(
        folder,
        &["evaluate", "msl", "--samples", "9", "--json"],
    ));
    let page = self::page(folder, &["lml", "msl"]);
    assert!(page.contains("not evaluated on the same users"));
    assert!(page.contains("not on the same users, or"));
}

#[test]
fn the_settings_of_bear_are_kept_and_shown_with_their_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    train(folder, "bear", &["--loss", "bear", "--bear-xi", "1.5"]);
    train(folder, "msl", &["--loss", "msl"]);
    let kept = fs::read(folder.join("bear/training.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    let settings = ["bear_beams", "bear_lambda", "bear_xi"].map(|name| &kept["loss"][name]);
    assert_eq!(settings, [&value!(10), &value!(0.25), &value!(1.5)]);
    let page = page(folder, &["bear", "msl"]);
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("no {text:?}"));
    for name in ["loss.bear_beams", "loss.bear_lambda", "loss.bear_xi"] {
        assert!(place(&format!(">{name}<")) < place("What all of them share"));
    }
}

#[test]
fn ranks_kept_elsewhere_leave_the_evaluation_of_the_run_alone() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    train(folder, "run", &["--loss", "msl"]);
    let elsewhere = ["evaluate", "run", "--ranks", "ranks.csv", "--json"];
    json(&msl(folder, &elsewhere));
    assert!(!folder.join("run/evaluation.json").exists());
    let shown = json(&msl(folder, &["evaluate", "run", "--json"]));
    let kept = fs::read(folder.join("run/evaluation.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    assert_eq!(kept, shown);
}

#[test]
fn a_folder_that_is_no_run_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    fs::create_dir(folder.join("empty")).unwrap();
    let output = report(folder, &["empty"]);
    assert!(!output.status.success());
    assert!(errors(&output).contains("empty is no folder of a run"));
    assert!(!folder.join("page.html").exists());
    train(folder, "run", &["--loss", "msl"]);
    fs::write(folder.join("run/evaluation.json"), "{\"users\": ").unwrap();
    let output = report(folder, &["run"]);
    assert!(
        errors(&output).contains("evaluation.json"),
        "{}",
        errors(&output)
    );
}
