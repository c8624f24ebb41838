//! Items, interactions and users in tables whose columns are named on the command line, and what servers are given.

use std::{fs, path::Path};

use serde_json::Value;

use crate::running::{SMALL, errors, json, msl, write_atomic_files};

/// Writes twenty films as CSV with codes, and the choices of thirty users as JSON lines compressed by zstd. One user and one
/// film have one choice.
fn write_tables(folder: &Path) {
    let items: String = (0..20)
        .map(|item| {
            format!(
                "f{item},\"Film {item}, the\",<a_{}><b_{}>\n",
                item % 5,
                item / 5
            )
        })
        .collect();
    fs::write(
        folder.join("films.csv"),
        format!("sku,name,sid\n{items}f99,Rare,<a_0><b_9>\n"),
    )
    .unwrap();
    let choices: String = (0..30 * 7)
        .map(|row| (row / 7, row % 7))
        .map(|(user, place)| {
            let film = (user * 3 + place) % 20;
            format!("{{\"who\": {user}, \"sku\": \"f{film}\", \"at\": {place}}}\n")
        })
        .collect();
    let choices = choices + "{\"who\": 99, \"sku\": \"f99\", \"at\": 3}\n";
    let packed = zstd::encode_all(choices.as_bytes(), 1).unwrap();
    fs::write(folder.join("choices.jsonl.zst"), packed).unwrap();
}

const TABLES: [&str; 14] = [
    "--items",
    "films.csv",
    "--interactions",
    "choices.jsonl.zst",
    "--item-column",
    "sku",
    "--user-column",
    "who",
    "--time-column",
    "at",
    "--title-column",
    "name",
    "--codes-column",
    "sid",
];

#[test]
fn tables_are_trained_on_and_many_users_are_recommended_to_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_tables(folder);
    let train = ["train", "--output", "run", "--loss", "msl", "--k-core", "2"];
    let output = msl(folder, &[&train[..], &TABLES, &SMALL].concat());
    let said = errors(&output);
    assert!(output.status.success(), "{said}");
    for part in [
        "films.csv (sku, name; 21 rows)",
        "(who, sku, at; 211 rows)",
        "20 items with 20 different paths",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for file in ["films.csv", "choices.jsonl.zst"] {
        let before = fs::read(folder.join(file)).unwrap();
        for command in [
            ["evaluate", "run", "--ranks", file],
            ["evaluate", "run", "--lists", file],
            ["report", "run", "--output", file],
        ] {
            let output = msl(folder, &command);
            assert!(!output.status.success(), "{command:?}");
            assert!(errors(&output).contains(file), "{}", errors(&output));
        }
        assert!(fs::read(folder.join(file)).unwrap() == before, "{file}");
    }
    let users = "{\"user_id\": \"u\", \"history\": [\"f3\", \"f4\"], \"blocked\": [\"f7\"]}\n\
                 {\"user_id\": \"v\", \"history\": [\"f98\"]}\n\
                 {\"user_id\": \"w\", \"history\": [\"f98\", \"f4\"]}\n";
    fs::write(folder.join("users.jsonl"), users).unwrap();
    let recommend = [
        "recommend",
        "run",
        "--users",
        "users.jsonl",
        "--output",
        "lists.jsonl",
        "--unseen",
        "--exclude",
        "blocked",
        "--top",
        "20",
    ];
    let output = msl(folder, &recommend);
    let said = errors(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("users.jsonl, line 2: item \"f98\" is not in the catalogue"),
        "{said}"
    );
    let lists = fs::read_to_string(folder.join("lists.jsonl")).unwrap();
    // A stream gets these lines alone, and as fewer beams than titles find fewer titles, they are refused.
    let streamed = recommend.map(|word| word.replace("lists.jsonl", "/dev/stdout"));
    let streamed = streamed.each_ref().map(String::as_str);
    assert_eq!(msl(folder, &streamed).stdout, lists.as_bytes());
    let few = msl(folder, &[&recommend[..], &["--beams", "19"]].concat());
    let said = errors(&few);
    assert!(
        said.contains("--beams 19 cannot find the 20 titles"),
        "{said}"
    );
    let lists: Vec<Value> = lists
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let found = |user: usize| -> Vec<&str> {
        let list = lists[user]["recommended"].as_array().unwrap();
        list.iter()
            .map(|found| found["items"][0].as_str().unwrap())
            .collect()
    };
    assert_eq!(lists[0]["user_id"], "u");
    let (first, third) = (found(0), found(2));
    assert_eq!((first.len(), found(1).len(), third.len()), (17, 0, 19));
    assert!(
        ["f3", "f4", "f7"].iter().all(|item| !first.contains(item)),
        "{first:?}"
    );

    // As one user alone is recommended.
    let alone = [
        "recommend",
        "run",
        "f4",
        "--unseen",
        "--top",
        "20",
        "--json",
    ];
    let alone = json(&msl(folder, &alone));
    let alone = alone["recommended"].as_array().unwrap();
    assert_eq!(alone[0]["items"][0], third[0]);
    assert_eq!(alone[0]["codes"], lists[2]["recommended"][0]["codes"]);

    // The tables have moved together.
    fs::create_dir(folder.join("elsewhere")).unwrap();
    for file in ["films.csv", "choices.jsonl.zst"] {
        fs::rename(folder.join(file), folder.join("elsewhere").join(file)).unwrap();
    }
    let moved = msl(folder, &["evaluate", "run", "--data", "elsewhere"]);
    assert!(moved.status.success(), "{}", errors(&moved));

    let export = [
        "export",
        "run",
        "--data",
        "elsewhere",
        "--output",
        "allowed.jsonl",
    ];
    let output = msl(folder, &export);
    assert!(output.status.success(), "{}", errors(&output));
    let lines = fs::read_to_string(folder.join("allowed.jsonl")).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // The root, five first codes, twenty second ones, and as many ends.
    assert_eq!(lines.len(), 1 + 5 + 20 + 20);
    assert_eq!(lines[0]["allowed"].as_array().unwrap().len(), 5);
    let ends = lines.iter().filter(|line| line["items"].is_array());
    assert_eq!(ends.count(), 20);
}

#[test]
fn what_is_wrong_with_tables_and_their_options_is_said_with_file_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_tables(folder);
    let refused = |arguments: &[&str], expected: &[&str]| {
        let output = msl(folder, &[&["inspect"], arguments].concat());
        let said = errors(&output);
        assert!(!output.status.success(), "{said}");
        for part in expected {
            assert!(said.contains(part), "{part}: {said}");
        }
    };
    let without = |option: &str| -> Vec<&str> {
        let mut options = TABLES.to_vec();
        let place = options.iter().position(|other| *other == option).unwrap();
        options.drain(place..place + 2);
        options
    };
    refused(
        &without("--user-column"),
        &[
            "choices.jsonl.zst, line 1: expected a column user_id",
            "who",
        ],
    );
    refused(&without("--interactions"), &["--interactions"]);
    refused(&["--k-core", "2"], &["CATALOGUE"]);
    refused(
        &[&without("--time-column")[..], &["--time-column", "sku"]].concat(),
        &[
            "choices.jsonl.zst, line 1, column sku: expected a timestamp",
            "\"f0\"",
        ],
    );
    refused(
        &[&without("--codes-column")[..], &["--codes-column", "name"]].concat(),
        &["films.csv, line 2, column name: expected a list of codes"],
    );
    refused(
        &[&TABLES[..], &["--k-core", "99"]].concat(),
        &["--k-core 99 leaves nothing"],
    );
    let packed = fs::read(folder.join("choices.jsonl.zst")).unwrap();
    fs::write(
        folder.join("choices.jsonl.zst"),
        &packed[..packed.len() / 2],
    )
    .unwrap();
    refused(&TABLES, &["choices.jsonl.zst"]);
    for file in ["films.csv", "choices.jsonl.zst"] {
        fs::remove_file(folder.join(file)).unwrap();
    }
    write_atomic_files(folder);
    let inter = fs::read_to_string(folder.join("films.inter")).unwrap();
    for part in ["train", "valid", "test"] {
        fs::write(folder.join(format!("films.{part}.inter")), &inter).unwrap();
    }
    fs::remove_file(folder.join("films.inter")).unwrap();
    refused(
        &[".", "--k-core", "2"],
        &["--k-core and --split-by are for choices that nobody has split"],
    );
}
