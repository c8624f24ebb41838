//! Tests the reading of the files of LC-Rec and MiniOneRec.

use super::*;
use crate::{
    data::catalogue::Interaction,
    data::{arguments::DataArguments, dataset::Dataset},
    io::folder_of,
};

const INDEX: (&str, &str) = (
    "x.index.json",
    r#"{"1": ["<a_1>", "<b_1>"], "2": ["<a_1>", "<b_2>"], "3": ["<a_2>", "<b_1>"], "4": ["<a_1>", "<b_1>"]}"#,
);
const ITEMS: (&str, &str) = (
    "x.item.json",
    r#"{"1": {"title": "Emma", "description": ["A novel", "of manners"]}, "2": {"title": "Sea", "description": "7"},
        "3": {"title": " ", "description": "x"}, "4": {"title": "Glass", "description": "of glass"}}"#,
);
const USERS: (&str, &str) = (
    "x.inter.json",
    r#"{"u": [1, 2, 3, 4], "v": ["2", "1"], "w": [3, 99, 1], "x": [1, 2, 4, 1]}"#,
);

fn read(files: &[(&str, &str)], change: impl FnOnce(&mut DataArguments)) -> Result<Dataset> {
    let folder = folder_of(files);
    let mut arguments = DataArguments::of(folder.path());
    change(&mut arguments);
    Dataset::read(&arguments.with_defaults()?, 1)
}

fn names(dataset: &Dataset) -> Vec<String> {
    let numbers = 0..dataset.catalogue.items().len() as u64;
    numbers
        .map(|number| dataset.catalogue.name(number))
        .collect()
}

#[test]
fn the_last_item_of_a_list_is_for_the_test_and_items_are_named_by_their_codes() {
    let dataset = read(&[INDEX, ITEMS, USERS], |_| ()).unwrap();
    assert_eq!(
        names(&dataset),
        ["<a_1><b_1>", "<a_1><b_2>", "<a_2><b_1>", "<a_1><b_1>"]
    );
    let expected = ["u", "x"].map(|user| Interaction::of(user, &[0], 1));
    assert_eq!(dataset.training, expected);
    let expected = [
        Interaction::of("u", &[0, 1], 2),
        Interaction::of("x", &[0, 1], 3),
    ];
    assert_eq!(dataset.validation, expected);
    let expected = [
        Interaction::of("u", &[0, 1, 2], 3),
        Interaction::of("v", &[1], 0),
        Interaction::of("w", &[2], 0),
        Interaction::of("x", &[0, 1, 3], 0),
    ];
    assert_eq!(dataset.test, expected);
    let left_out = dataset.report.rows_left_out.examples.join("; ");
    assert!(
        left_out.contains("x.inter.json, user \"w\": item \"99\" is not in the catalogue"),
        "{left_out}"
    );
}

#[test]
fn items_are_identified_by_titles_codes_with_titles_and_any_text() {
    let by = |identifier, column: Option<&str>| {
        read(&[INDEX, ITEMS, USERS], |arguments| {
            arguments.identifier = Some(identifier);
            arguments.title_column = column.map(str::to_owned);
        })
    };
    let found = by(Identifier::Title, None).unwrap();
    assert_eq!(names(&found), ["\"Emma\"", "\"Sea\"", "\"Glass\""]);
    assert_eq!(found.report.items_left_out.count, 1);
    let found = by(Identifier::CodesTitle, None).unwrap();
    assert_eq!(names(&found)[2], "<a_1><b_1> \"Glass\"");
    let found = by(Identifier::Title, Some("description")).unwrap();
    assert_eq!(
        names(&found),
        ["\"A novel of manners\"", "\"7\"", "\"x\"", "\"of glass\""]
    );
    let error = by(Identifier::Codes, Some("name"))
        .err()
        .unwrap()
        .to_string();
    for part in ["x.item.json", "a field name", "description, title"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn codes_stand_beside_the_files_of_the_other_formats_and_without_titles() {
    let untitled = read(&[INDEX, USERS], |_| ()).unwrap();
    assert_eq!(untitled.catalogue.label(2), "<a_2><b_1>");
    let error = read(&[INDEX, USERS], |arguments| {
        arguments.identifier = Some(Identifier::Title);
    });
    assert!(
        error
            .err()
            .unwrap()
            .to_string()
            .contains("expected NAME.item.json")
    );
    let paper = [
        INDEX,
        ("id2name4Rec.json", r#"{"1": "A", "2": "B", "3": "C"}"#),
        ("train.csv", "user_id,item_ids\nu,\"[1, 2, 3]\"\n"),
    ];
    assert_eq!(names(&read(&paper, |_| ()).unwrap())[2], "<a_2><b_1>");
    let rows = "user_id,history_item_id,item_id\nu,\"['1', '2']\",3\n";
    let mini = [INDEX, ITEMS, ("train.csv", rows), ("test.csv", rows)];
    let mini = read(&mini, |arguments| arguments.history = Some(1)).unwrap();
    assert_eq!(mini.training, [Interaction::of("u", &[1], 2)]);
    assert_eq!((mini.validation.len(), mini.test.len()), (0, 1));
    let error = read(&paper[1..], |arguments| {
        arguments.identifier = Some(Identifier::Codes);
    });
    let error = error.err().unwrap().to_string();
    assert!(error.contains("NAME.index.json"), "{error}");
}

#[test]
fn what_is_wrong_with_items_and_users_is_said_with_file_and_place() {
    for (file, text, expected) in [
        (
            "x.item.json",
            "{\"1\": {\"title\": \"A\"},\n \"2\": 7}",
            "line 2: invalid type",
        ),
        (
            "x.item.json",
            "[]",
            "line 1: invalid type: sequence, expected an object",
        ),
        (
            "x.item.json",
            "{\"1\": {\"title\": \"A\"}} x",
            "line 1: trailing characters",
        ),
        ("x.inter.json", "{\"7\": 3}", "line 1: invalid type"),
        (
            "x.inter.json",
            "{\"7\": [null]}",
            "user \"7\": expected item ids, found null",
        ),
        (
            "x.inter.json",
            "{\"7\": [99]}",
            "expected rows of items that the catalogue has",
        ),
        ("x.inter.json", "{}", "expected at least one row"),
        (
            "x.inter.json",
            "{\"7\": [1, 2]}",
            "expected a user with at least four items",
        ),
    ] {
        let others = [ITEMS, USERS].into_iter().filter(|(name, _)| *name != file);
        let files: Vec<(&str, &str)> = others.chain([(file, text)]).collect();
        let error = format!("{:#}", read(&files, |_| ()).err().unwrap());
        assert!(error.contains(file) && error.contains(expected), "{error}");
    }
}
