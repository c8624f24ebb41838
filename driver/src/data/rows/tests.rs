//! Tests the reading of rows that have their histories.

use super::*;
use crate::{
    data::{files::TITLES_FILE, paper_format::read_catalogue},
    io::folder_of,
};

fn read(titles: &str, csv: &str, strict: bool) -> Result<(Vec<Interaction>, DataReport)> {
    let folder = folder_of(&[(TITLES_FILE, titles), ("train.csv", csv)]);
    let mut report = DataReport::new(strict);
    let catalogue = read_catalogue(&folder.path().join(TITLES_FILE), true, &mut report)?;
    let file = folder.path().join("train.csv");
    let rows = read_rows(
        &file,
        Layout::CommaSeparated,
        usize::MAX,
        &catalogue,
        &mut report,
    )?;
    Ok((rows, report))
}

#[test]
fn rows_are_read_whatever_their_ids_look_like() {
    let titles =
        "\u{feff}{\"7\": \"A\", \"007\": \"B\", \"B00X\": \"C\", \"it's \\\"é\\\"\": \"D\"}";
    let csv = "\u{feff}user_id,item_ids,timestamp\n\
               07,\"[7, 007, 7]\",99\n\
               a,\"['007', 'B00X']\",99\n\
               b,\"[\"\"B00X\"\", \"\"it's \\\"\"\\u00e9\\\"\"\"\"]\",99\n";
    let (rows, _) = read(titles, csv, true).unwrap();
    let expected = [
        Interaction::of("07", &[0, 1], 0),
        Interaction::of("a", &[1], 2),
        Interaction::of("b", &[2], 3),
    ];
    assert_eq!(rows, expected);
}

#[test]
fn items_without_a_title_and_rows_of_unknown_items_are_left_out_or_refused() {
    let titles = r#"{"1": "A", "2": " ", "3": null, "4": "D"}"#;
    let csv = "user_id,item_ids\nu,\"[1, 4]\"\nv,\"[1, 2, 4]\"\nw,\"[99, 4]\"\n";
    let (rows, report) = read(titles, csv, false).unwrap();
    assert_eq!(rows, [Interaction::of("u", &[0], 1)]);
    assert_eq!(
        (report.items_left_out.count, report.rows_left_out.count),
        (2, 2)
    );
    let examples = report.rows_left_out.examples.join("; ");
    for part in [
        "train.csv, line 3: item \"2\" has no title",
        "line 4: item \"99\" is not in",
    ] {
        assert!(examples.contains(part), "{examples}");
    }
    let error = read(titles, csv, true).unwrap_err().to_string();
    assert!(
        error.contains("id2name4Rec.json: item \"2\" has no title"),
        "{error}"
    );
    let error = read(r#"{"1": "A"}"#, csv, true).unwrap_err().to_string();
    assert!(
        error.contains("line 2: item \"4\" is not in the catalogue"),
        "{error}"
    );
    let error = read(r#"{"0": "A"}"#, csv, false).unwrap_err().to_string();
    assert!(
        error.contains("train.csv: expected rows of items that the catalogue has"),
        "{error}"
    );
}

#[test]
fn what_is_wrong_is_said_with_file_and_line() {
    const HEADER: &str = "user_id,item_ids,timestamp\n";
    let rows = |rows: &str| format!("{HEADER}7,\"[1, 2]\",99\n{rows}");
    for (csv, expected) in [
        (
            rows("7,\"[1, x]\",99\n"),
            "line 3: expected item_ids to be a list",
        ),
        (
            rows("7,\"[1, 2\",99\n"),
            "line 3: expected item_ids to be a list",
        ),
        (
            rows("7,\"[1 2]\",99\n"),
            "there is no comma between two ids",
        ),
        (rows("7,\"['1, 2]\",99\n"), "a quote is not closed"),
        (
            rows("7,\"[1]\",99\n"),
            "line 3: expected at least two item ids",
        ),
        (rows("7,\"[1, 2]\",99,5\n"), "line 3: expected 3 fields"),
        (
            "user,items\n1,2\n".into(),
            "line 1: expected the columns user_id and item_ids, or user_id, history_item_id and item_id, found the columns user, items",
        ),
        (HEADER.into(), "expected at least one row"),
    ] {
        let error = read(r#"{"1": "A", "2": "B"}"#, &csv, false).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("train.csv") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn malformed_titles_name_the_line() {
    for (titles, expected) in [
        ("{\"1\": \"A\",\n \"2\": 7}", "line 2: invalid type"),
        ("[1]", "line 1: invalid type: sequence, expected an object"),
        ("{\"1\": \"A\",\n \"1\": \"B\"}", "item \"1\" occurs twice"),
    ] {
        let text = format!("{:#}", read(titles, "", false).unwrap_err());
        assert!(
            text.contains("id2name4Rec.json") && text.contains(expected),
            "{text}"
        );
    }
}

#[test]
fn rows_of_mini_one_rec_have_the_item_that_came_next_in_a_column_of_its_own() {
    let titles = r#"{"1": "A", "2": "B", "3": "C"}"#;
    let csv = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n\
               A1,\"['A', 'B']\",C,\"['1', '2']\",3,\"['<a_1><b_1>', '<a_1><b_2>']\",<a_2><b_1>\n\
               A2,\"['A']\",B,[1],2,\"['<a_1><b_1>']\",<a_1><b_2>\n\
               A3,[],B,[],2,[],<a_1><b_2>\n";
    let (rows, report) = read(titles, csv, false).unwrap();
    let expected = [
        Interaction::of("A1", &[0, 1], 2),
        Interaction::of("A2", &[0], 1),
    ];
    assert_eq!(rows, expected);
    let left_out = report.rows_left_out.examples.join("; ");
    assert!(
        left_out.contains("train.csv, line 4: history_item_id is empty"),
        "{left_out}"
    );
}
