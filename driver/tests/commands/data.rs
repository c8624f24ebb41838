//! What the commands say of the data that they read, and that ids come back as they went in.

use std::{collections::BTreeMap, fs, path::Path};

use candle_trie::TokenTrie;
use msl::data::{
    catalogue::{Catalogue, Item},
    responses::Responses,
    tokenizer::TextTokenizer,
};

use crate::running::{
    SMALL, errors, json, last_checkpoint, msl, write_atomic_files, write_catalogue,
};

fn train(folder: &Path, options: &[&str]) {
    let base = ["train", "--data", ".", "--output", "run", "--loss", "msl"];
    let output = msl(folder, &[&base[..], &SMALL, options].concat());
    assert!(output.status.success(), "{}", errors(&output));
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}

/// Ids of which some are no numbers and some are the same number.
fn write_odd_ids(folder: &Path) {
    write_atomic_files(folder);
    for file in ["films.item", "films.inter"] {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        let text = text
            .replace("f1\t", "7\t")
            .replace("f2\t", "007\t")
            .replace("f3\t", "=B00113X\t");
        fs::write(folder.join(file), text).unwrap();
    }
}

#[test]
fn ids_come_back_as_they_went_in() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_odd_ids(folder);
    train(folder, &[]);
    let output = msl(folder, &["evaluate", "run", "--lists", "lists.jsonl"]);
    assert!(output.status.success(), "{}", errors(&output));

    // The user's number, tripled and five more, is the film that came last.
    let id = |film: usize| match film {
        1 => "7".to_owned(),
        2 => "007".to_owned(),
        3 => "=B00113X".to_owned(),
        other => format!("f{other}"),
    };
    let ranks = msl::evaluate::ranks::read_ranks(&folder.join("run/ranks.csv")).unwrap();
    let targets: Vec<String> = ranks.into_iter().map(|user| user.item_id).collect();
    let expected: Vec<String> = (0..30).map(|user| id((user * 3 + 6) % 20)).collect();
    assert_eq!(targets, expected);
    let written = fs::read_to_string(folder.join("run/ranks.csv")).unwrap();
    assert!(written.contains(",'=B00113X,"), "{written}");

    let lists = fs::read_to_string(folder.join("lists.jsonl")).unwrap();
    let list: serde_json::Value = serde_json::from_str(lists.lines().next().unwrap()).unwrap();
    let mut listed: Vec<String> = (list["recommended"].as_array().unwrap().iter())
        .map(|found| found["items"][0].as_str().unwrap().to_owned())
        .collect();
    let mut all: Vec<String> = (0..20).map(id).collect();
    listed.sort();
    all.sort();
    assert_eq!(listed, all);

    let recommend = [
        "recommend",
        "run",
        "007",
        "--unseen",
        "--top",
        "20",
        "--json",
    ];
    let recommended = json(&msl(folder, &recommend));
    assert_eq!(
        recommended["history"],
        serde_json::json!(["The Big Film 2"])
    );
    let items: Vec<&str> = (recommended["recommended"].as_array().unwrap().iter())
        .map(|found| found["items"][0].as_str().unwrap())
        .collect();
    assert!(
        items.len() == 19 && items.contains(&"7") && !items.contains(&"007"),
        "{items:?}"
    );
}

#[test]
fn every_command_says_what_it_read_and_what_it_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_atomic_files(folder);
    let items = fs::read_to_string(folder.join("films.item")).unwrap();
    let items = items
        .replace("f4\tThe Big Film 4", "f4\t")
        .replace("f6\t", "f60\t");
    fs::write(folder.join("films.item"), items).unwrap();
    train(folder, &[]);
    let train = ["train", "--data", ".", "--output", "again", "--loss", "msl"];
    let commands = [
        &[&train[..], &SMALL].concat()[..],
        &["resume", "run"],
        &["inspect", "."],
        &["evaluate", "run"],
        &["recommend", "run", "The Big Film 2"],
    ];
    for command in commands {
        let output = msl(folder, command);
        let said = errors(&output);
        assert!(output.status.success(), "{said}");
        let read: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("read "))
            .collect();
        assert_eq!(read.len(), 1, "{said}");
        assert_says(
            read[0],
            &[
                "films.item (item_id, movie_title; 20 rows)",
                "films.inter (user_id, item_id, timestamp; 210 rows)",
                "19 items with 19 different titles",
            ],
        );
        assert_says(
            &said,
            &[
                "warning: left out 1 item: ",
                "films.item, line 6: item \"f4\" has no title",
                "warning: left out 24 rows: ",
                "item \"f6\" is not in the catalogue",
                "; 21 more",
            ],
        );
    }
    let shape = json(&msl(folder, &["inspect", ".", "--json"]));
    assert_eq!(shape["items_left_out"]["count"], 1);
    assert_eq!(shape["rows_left_out"]["count"], 24);
    assert_eq!(
        shape["rows_left_out"]["examples"].as_array().unwrap().len(),
        3
    );
    let strict = msl(folder, &["inspect", ".", "--strict"]);
    assert!(!strict.status.success());
    assert_says(
        &errors(&strict),
        &["films.item, line 6: item \"f4\" has no title"],
    );
}

#[test]
fn fewer_rows_for_validation_than_were_asked_for_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_atomic_files(folder);
    let base = ["train", "--data", ".", "--output", "run", "--loss", "msl"];
    let output = msl(
        folder,
        &[&base[..], &SMALL, &["--validation", "100000"]].concat(),
    );
    assert!(output.status.success(), "{}", errors(&output));
    assert_says(&errors(&output), &["--validation asks for 100000 rows"]);
}

#[test]
fn titles_that_are_mostly_alike_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_atomic_files(folder);
    let items = fs::read_to_string(folder.join("films.item")).unwrap();
    let words = |line: &str| {
        line.rsplit_once(' ')
            .map_or(line.to_owned(), |(words, _)| words.to_owned())
    };
    let items: Vec<String> = items.lines().map(words).collect();
    fs::write(folder.join("films.item"), items.join("\n")).unwrap();
    let said = errors(&msl(folder, &["inspect", "."]));
    assert_says(
        &said,
        &[
            "20 items with 2 different titles",
            "fewer than half",
            "--title-column",
        ],
    );
    write_atomic_files(folder);
    assert!(!errors(&msl(folder, &["inspect", "."])).contains("warning"));
}

#[test]
fn titles_that_the_tokenizer_merges_are_warned_of_wherever_they_are_tokenized() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    let titles = r#"{"1": "Emma", "2": "EMMA", "3": "emma", "4": "Sea", "5": "Sea"}"#;
    fs::write(folder.join("id2name4Rec.json"), titles).unwrap();
    let rows = "user_id,item_ids\nu,\"[1, 2]\"\nv,\"[3, 4]\"\n";
    for file in ["train.csv", "test.csv"] {
        fs::write(folder.join(file), rows).unwrap();
    }
    let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null, "model": {"type": "WordLevel", "unk_token": "?",
        "vocab": {"</s>": 0, "?": 1, "emma": 2, "sea": 3, "\"": 4}}}"#;
    fs::write(folder.join("lower.json"), tokenizer).unwrap();
    let merged = [
        "3 different titles",
        "\"EMMA\" = \"Emma\" = \"emma\"",
        "counts as a hit on each",
    ];
    train(folder, &["--tokenizer", "lower.json"]);
    for command in [
        &["inspect", ".", "--tokenizer", "lower.json"][..],
        &["resume", "run"],
        &["evaluate", "run"],
    ] {
        let output = msl(folder, command);
        assert!(output.status.success(), "{}", errors(&output));
        assert_says(&errors(&output), &merged);
    }
    let inspect = ["inspect", ".", "--tokenizer", "lower.json"];
    let table = String::from_utf8(msl(folder, &inspect).stdout).unwrap();
    assert_says(&table, &merged);
    let shape = json(&msl(folder, &[&inspect[..], &["--json"]].concat()));
    assert_eq!(
        (&shape["different_titles"], &shape["titles"]),
        (&4.into(), &2.into())
    );
    assert_eq!(shape["merged_titles"]["count"], 3);
}

/// As runs were kept: with the numbers of the data as ids in the trie, a blank title as a title, and every setting written
/// out.
#[test]
fn a_run_from_before_items_had_numbers_of_their_own_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_catalogue(folder);
    let titles = fs::read_to_string(folder.join("id2name4Rec.json")).unwrap();
    let titles = titles.replace("\"1\": \"The Sea Book 0\"", "\"1\": \"\"");
    fs::write(folder.join("id2name4Rec.json"), &titles).unwrap();
    train(folder, &[]);
    let run = folder.join("run");
    let tokenizer = last_checkpoint(&run).join("tokenizer.json");
    let tokenizer = TextTokenizer::load(&tokenizer, None).unwrap();
    let titles: BTreeMap<u64, String> = serde_json::from_str(&titles).unwrap();
    let items = titles.iter().map(|(id, title)| Item {
        id: id.to_string(),
        title: title.clone(),
    });
    let catalogue = Catalogue::new(items.collect()).unwrap();
    let responses = Responses::new(&catalogue, &tokenizer).unwrap();
    let paths = (0..40).map(|item| (item + 1, responses.path(item).unwrap()));
    let trie = TokenTrie::new(paths).unwrap();
    trie.save(run.join("trie.safetensors")).unwrap();
    fs::remove_file(run.join("made_with.json")).unwrap();
    let evaluate = || msl(folder, &["evaluate", "run"]);
    assert_says(&errors(&evaluate()), &["another catalogue"]);

    let settings = fs::read_to_string(run.join("training.json")).unwrap();
    let mut settings: serde_json::Value = serde_json::from_str(&settings).unwrap();
    let data = settings["data"].as_object_mut().unwrap();
    data.remove("leave_out_blank");
    data.remove("strict");
    data.insert("history".into(), 10.into());
    for (name, value) in [("eta", 0.25), ("alpha", 0.05), ("initial_temperature", 1.5)] {
        settings["loss"][name] = value.into();
    }
    settings["loss"]["clamp"] = serde_json::json!([1.5, 5.0]);
    settings["loss"]["temperature_warm_up"] = 0.into();
    fs::write(run.join("training.json"), settings.to_string()).unwrap();
    for command in [&["evaluate", "run"], &["resume", "run"]] {
        let output = msl(folder, command);
        assert!(output.status.success(), "{}", errors(&output));
    }
}

#[test]
fn control_characters_are_shown_escaped_and_kept_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_atomic_files(folder);
    let items = fs::read_to_string(folder.join("films.item")).unwrap();
    let items = items.replace("The Big Film 2", "\u{1b}[2JCleared");
    fs::write(folder.join("films.item"), items).unwrap();
    train(folder, &[]);
    let run = "ru\u{1b}[31mn";
    fs::rename(folder.join("run"), folder.join(run)).unwrap();
    let said = errors(&msl(folder, &["recommend", run, "The Small Film 1"]));
    assert!(
        !said.contains('\u{1b}') && said.contains("ru\\u{1b}[31mn"),
        "{said}"
    );
    fs::rename(folder.join(run), folder.join("run")).unwrap();
    let recommend = ["recommend", "run", "The Small Film 1", "--top", "20"];
    let table = String::from_utf8(msl(folder, &recommend).stdout).unwrap();
    assert!(
        !table.contains('\u{1b}') && table.contains("\\u{1b}[2JCleared"),
        "{table}"
    );
    let kept = json(&msl(folder, &[&recommend[..], &["--json"]].concat()));
    let mut kept = kept["recommended"].as_array().unwrap().iter();
    assert!(kept.any(|found| found["title"] == "\u{1b}[2JCleared"));
    let missing = errors(&msl(folder, &["inspect", "no\u{1b}[2Jfolder"]));
    assert!(!missing.contains('\u{1b}'), "{missing}");
}
