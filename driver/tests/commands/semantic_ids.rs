//! Runs over catalogues whose items are identified by the codes of a semantic-ID index.

use std::{fs, path::Path};

use serde_json::Value;

use crate::running::{
    SMALL, assert_training_is_refused, errors, json, last_checkpoint, line, msl, write_catalogue,
};

/// Number of items; the last two have the same codes.
pub const ITEMS: usize = 20;

/// The codes of an item: one of five first codes, and one of four second ones.
fn codes(item: usize) -> [String; 2] {
    let item = item.min(ITEMS - 2);
    [format!("<a_{}>", item % 5), format!("<b_{}>", item / 5)]
}

/// Writes a catalogue as LC-Rec shares it: twenty films, and thirty users who watch seven in a row.
pub fn write_index(folder: &Path) {
    let index: serde_json::Map<String, Value> = (0..ITEMS)
        .map(|item| (item.to_string(), codes(item).to_vec().into()))
        .collect();
    let items: serde_json::Map<String, Value> = (0..ITEMS)
        .map(|item| {
            let texts = serde_json::json!({"title": format!("Film {item}"), "description": ""});
            (item.to_string(), texts)
        })
        .collect();
    let users: serde_json::Map<String, Value> = (0..30)
        .map(|user| {
            let items = (0..7).map(|place| (user * 3 + place) % ITEMS);
            (format!("u{user}"), items.collect::<Vec<_>>().into())
        })
        .collect();
    for (name, object) in [("index", index), ("item", items), ("inter", users)] {
        let text = serde_json::to_string(&object).unwrap();
        fs::write(folder.join(format!("films.{name}.json")), text).unwrap();
    }
}

fn train(folder: &Path, run: &str, options: &[&str]) -> Value {
    let base = [
        "train", "--data", ".", "--output", run, "--loss", "msl", "--json",
    ];
    json(&msl(folder, &[&base[..], &SMALL, options].concat()))
}

fn setting(folder: &Path, run: &str) -> Value {
    let settings = fs::read_to_string(folder.join(run).join("training.json")).unwrap();
    serde_json::from_str(&settings).unwrap()
}

#[test]
fn a_model_over_codes_alone_is_trained_evaluated_and_asked_without_a_text_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_index(folder);
    train(
        folder,
        "run",
        &["--validation", "10", "--learning-rate", "1e-2"],
    );
    let settings = setting(folder, "run");
    assert_eq!(settings["data"]["identifier"], "codes");
    assert_eq!(settings["prompt"]["prompt"], "codes");

    // An end token, an unknown one and nine codes are all that the model knows.
    let tokenizer = last_checkpoint(&folder.join("run")).join("tokenizer.json");
    let tokenizer: Value = serde_json::from_str(&fs::read_to_string(tokenizer).unwrap()).unwrap();
    assert_eq!(tokenizer["added_tokens"].as_array().unwrap().len(), 11);

    let evaluated = json(&msl(
        folder,
        &[
            "evaluate",
            "run",
            "--search",
            "exact",
            "--lists",
            "lists.jsonl",
            "--json",
        ],
    ));
    assert_eq!(evaluated["users"], 30);
    assert!(line(&evaluated, "run")["item_nll"].as_f64().unwrap() > 0.0);
    let ranks = msl::evaluate::ranks::read_ranks(&folder.join("run/ranks.csv")).unwrap();
    let mut targets: Vec<String> = ranks.into_iter().map(|user| user.item_id).collect();
    let mut expected: Vec<String> = (0..30)
        .map(|user| ((user * 3 + 6) % ITEMS).to_string())
        .collect();
    targets.sort();
    expected.sort();
    assert_eq!(targets, expected);

    // Nineteen paths for twenty items: the two that collide are recommended together, in one place.
    let recommend = |history: &[&str]| {
        let more = ["--top", "20", "--json"];
        json(&msl(
            folder,
            &[&["recommend", "run"], history, &more].concat(),
        ))
    };
    let found = recommend(&["3", "<a_4><b_0>", "film 5"]);
    assert_eq!(
        found["history"],
        serde_json::json!(["Film 3", "Film 4", "Film 5"])
    );
    let found = found["recommended"].as_array().unwrap();
    assert_eq!(found.len(), ITEMS - 1);
    let sum: f64 = found
        .iter()
        .map(|line| line["probability"].as_f64().unwrap())
        .sum();
    assert!((sum - 1.0).abs() < 1e-4, "{sum}");
    let both = found
        .iter()
        .find(|line| line["codes"] == "<a_3><b_3>")
        .unwrap();
    assert_eq!(both["items"], serde_json::json!(["18", "19"]));
    let unseen = recommend(&["19", "--unseen"]);
    assert_eq!(unseen["recommended"].as_array().unwrap().len(), ITEMS - 2);

    let refused = errors(&msl(folder, &["recommend", "run", "Unheard of"]));
    assert!(
        refused.contains(
            "\"Unheard of\" is not in the catalogue: expected a title, an item id or codes"
        ),
        "{refused}"
    );
    assert!(msl(folder, &["report", "run"]).status.success());
    assert!(
        msl(folder, &["merge", "run", "--output", "merged"])
            .status
            .success()
    );
    let resumed = msl(folder, &["resume", "run"]);
    assert!(resumed.status.success(), "{}", errors(&resumed));

    // An index that was made anew is another catalogue.
    let index = fs::read_to_string(folder.join("films.index.json")).unwrap();
    fs::write(
        folder.join("films.index.json"),
        index.replace("<a_0>", "<a_9>"),
    )
    .unwrap();
    let refused = errors(&msl(folder, &["evaluate", "run"]));
    assert!(refused.contains("items, titles or codes"), "{refused}");
}

#[test]
fn inspect_shows_how_many_items_collide() {
    let folder = tempfile::tempdir().unwrap();
    write_index(folder.path());
    let output = msl(folder.path(), &["inspect", ".", "--json"]);
    let said = errors(&output);
    assert!(
        said.contains("2 items share their codes with another, on 1 paths"),
        "{said}"
    );
    assert!(
        said.contains("20 items with 19 different paths of codes"),
        "{said}"
    );
    let shape = json(&output);
    assert_eq!(
        shape["collisions"],
        serde_json::json!({"items": 2, "paths": 1, "largest": 2})
    );
    assert_eq!(shape["vocabulary"], 11);
    assert_eq!(shape["depth"], 3);
    let table = msl(folder.path(), &["inspect", "."]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("2 on 1 paths, at most 2"), "{table}");
}

#[test]
fn codes_and_titles_are_read_together_and_options_that_contradict_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_index(folder);
    train(
        folder,
        "both",
        &[
            "--identifier",
            "codes-title",
            "--prompt",
            "titles",
            "--vocabulary",
            "300",
        ],
    );
    let found = json(&msl(
        folder,
        &["recommend", "both", "Film 3", "--top", "20", "--json"],
    ));
    assert_eq!(
        found["recommended"].as_array().unwrap().len(),
        ITEMS,
        "titles tell apart what collides"
    );
    train(
        folder,
        "titles",
        &["--identifier", "title", "--vocabulary", "300"],
    );
    assert_eq!(setting(folder, "titles")["data"]["identifier"], "title");
    train(
        folder,
        "words",
        &["--prompt", "alpaca", "--vocabulary", "300"],
    );

    let refused = |options: &[&str], expected: &str| {
        assert_training_is_refused(folder, options, expected);
    };
    refused(
        &["--prompt", "codes", "--identifier", "title"],
        "--prompt codes is for items",
    );
    refused(&["--noun", "film"], "--noun and --verb");
    refused(&["--pretraining-epochs", "1"], "--pretraining-epochs reads");
    write_catalogue(folder);
    for file in ["index", "item", "inter"] {
        fs::remove_file(folder.join(format!("films.{file}.json"))).unwrap();
    }
    refused(
        &["--identifier", "codes"],
        "expected a semantic-ID index NAME.index.json",
    );
}
