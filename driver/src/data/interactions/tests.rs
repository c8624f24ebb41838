//! Tests the reading of atomic files.

use super::*;
use crate::{
    data::{
        catalogue::Identifier,
        files::{DataFiles, Items, PARTS},
        table_items::read_items,
    },
    io::folder_of,
};

/// The catalogue of most tests. The numbers of its items are 0 for item 10, 1 for item 20 and so on.
const ITEMS: &str =
    "item_id:token\tmovie_title:token_seq\n10\tToy \"Story\"\n20\tBabe\n30\tHeat\n40\tAntz\n";
const HEADER: &str = "user_id:token\titem_id:token\ttimestamp:float\n";

fn read_atomic(path: &Path, column: Option<&str>, report: &mut DataReport) -> Result<Catalogue> {
    read_items(
        path,
        Layout::Atomic,
        "item_id",
        column,
        Identifier::Title,
        report,
    )
}

fn titles(items: &str, column: Option<&str>) -> Result<Vec<(String, String)>> {
    let folder = folder_of(&[("x.item", items)]);
    let path = folder.path().join("x.item");
    let catalogue = read_atomic(&path, column, &mut DataReport::new(false))?;
    let items = catalogue.items().iter().cloned();
    Ok(items.map(|item| (item.id, item.title)).collect())
}

fn read(items: &str, files: &[(&str, &str)], history: usize) -> Result<(Parts, DataReport)> {
    let folder = folder_of(&[&[("x.item", items)], files].concat());
    let mut report = DataReport::new(false);
    let DataFiles::Split(files) = DataFiles::find(folder.path())? else {
        bail!("these are no atomic files");
    };
    let Items::Atomic(items) = &files.items else {
        bail!("these are no atomic files");
    };
    let catalogue = read_atomic(items, None, &mut report)?;
    let tables = TableArguments::default();
    let read = read_interactions(
        &files.interactions,
        &tables,
        &catalogue,
        history,
        &mut report,
    )?;
    let rows = match read {
        Read::Choices(mut users) => {
            users.split(SplitBy::LeaveOneOut);
            users.rows(history)
        }
        Read::Split(users) => users.rows(history),
        Read::Rows(rows) => rows,
    };
    Ok((rows, report))
}

#[test]
fn the_last_item_is_for_the_test_the_one_before_for_validation_and_ties_keep_their_order() {
    let rows = "a\t10\t5\nb\t40\t1\na\t20\t2\na\t30\t5\na\t40\t5\nb\t10\t0.5\nc\t10\t1\n";
    let (rows, _) = read(ITEMS, &[("x.inter", &format!("{HEADER}{rows}"))], 2).unwrap();
    let expected = [
        vec![Interaction::of("a", &[1], 0)],
        vec![Interaction::of("a", &[1, 0], 2)],
        vec![
            Interaction::of("a", &[0, 2], 3),
            Interaction::of("b", &[0], 3),
        ],
    ];
    assert_eq!(rows, expected);
}

#[test]
fn benchmark_files_are_what_their_names_say_and_no_history_holds_what_a_later_part_is_for() {
    let parts = [
        "a\t10\t1\na\t20\t2\na\t30\t4\n",
        "a\t40\t3\n",
        "a\t10\t5\nb\t10\t1\n",
    ];
    let texts = parts.map(|rows| format!("{HEADER}{rows}"));
    let expected = [
        // The item of the validation came before the last one of training, which must not know it.
        vec![
            Interaction::of("a", &[0], 1),
            Interaction::of("a", &[0, 1], 2),
        ],
        vec![Interaction::of("a", &[0, 1], 3)],
        vec![Interaction::of("a", &[3, 2], 0)],
    ];
    for names in PARTS {
        let names = names.map(|part| format!("x.{part}.inter"));
        let files: Vec<(&str, &str)> = names
            .iter()
            .zip(&texts)
            .map(|(name, text)| (&name[..], &text[..]))
            .collect();
        assert_eq!(read(ITEMS, &files, 2).unwrap().0, expected);
    }
}

#[test]
fn rows_of_benchmark_files_that_have_a_history_keep_it() {
    let header = "user_id:token\titem_id:token\titem_id_list:token_seq\n";
    let texts = [
        "a\t10\t20 30 40\n",
        "a\t20\t10 10\nb\t10\t\n",
        "a\t30\t10\na\t30\t10 99\n",
    ]
    .map(|rows| format!("{header}{rows}"));
    let names = ["x.part1.inter", "x.part2.inter", "x.part3.inter"];
    let files: Vec<(&str, &str)> = names
        .into_iter()
        .zip(texts.iter().map(String::as_str))
        .collect();
    let (rows, report) = read(ITEMS, &files, 2).unwrap();
    let expected = [
        vec![Interaction::of("a", &[2, 3], 0)],
        vec![Interaction::of("a", &[0, 0], 1)],
        vec![Interaction::of("a", &[0], 2)],
    ];
    assert_eq!(rows, expected);
    let left_out = report.rows_left_out.examples.join("; ");
    for part in [
        "x.part2.inter, line 3: item_id_list is empty",
        "x.part3.inter, line 3: item \"99\"",
    ] {
        assert!(left_out.contains(part), "{left_out}");
    }
}

#[test]
fn ids_and_the_quotes_of_titles_are_kept() {
    let items = "item_id:token\ttitle:token_seq\nB00X\t\"Emma\"\n7\tA\n007\tB\n";
    let expected = [("B00X", "\"Emma\""), ("7", "A"), ("007", "B")];
    let expected = expected.map(|(id, title)| (id.to_owned(), title.to_owned()));
    assert_eq!(titles(items, None).unwrap(), expected);
    let rows = format!("{HEADER}u\t007\t1\nu\t7\t2\nu\tB00X\t3\nu\t007\t4\n");
    let ([training, _, test], _) = read(items, &[("x.inter", &rows)], 9).unwrap();
    assert_eq!(training, [Interaction::of("u", &[2], 1)]);
    assert_eq!(test, [Interaction::of("u", &[2, 1, 0], 2)]);
}

#[test]
fn exact_names_of_the_title_column_come_before_names_that_end_so() {
    let column = |columns: &[&str]| {
        let header: Vec<String> = columns
            .iter()
            .map(|column| format!("{column}:token"))
            .collect();
        let text = format!(
            "item_id:token\t{}\n1\t{}\n",
            header.join("\t"),
            columns.join("\t")
        );
        titles(&text, None).map(|items| items[0].1.clone())
    };
    for (columns, expected) in [
        (&["category_name", "title"][..], "title"),
        (&["brand_name", "name"], "name"),
        (&["name", "title"], "title"),
        (&["category_name", "item_name"], "item_name"),
        (&["year", "movie_title"], "movie_title"),
    ] {
        assert_eq!(column(columns).unwrap(), expected);
    }
    let error = column(&["category_name", "product_name"])
        .unwrap_err()
        .to_string();
    for part in ["category_name, product_name", "--title-column"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn items_without_a_title_and_rows_of_unknown_items_are_left_out() {
    let items = format!("{ITEMS}50\t \n");
    let rows =
        format!("{HEADER}a\t10\t1\na\t50\t2\na\t99\t3\na\t20\t4\na\t30\t5\na\t40\t6\n\t40\t7\n");
    let ([training, _, test], report) = read(&items, &[("x.inter", &rows)], 9).unwrap();
    assert_eq!(training, [Interaction::of("a", &[0], 1)]);
    assert_eq!(test, [Interaction::of("a", &[0, 1, 2], 3)]);
    assert_eq!(
        (report.items_left_out.count, report.rows_left_out.count),
        (1, 3)
    );
    let places = [
        "x.item, line 6: item \"50\" has no title",
        "x.inter, line 3: item \"50\" has no title",
        "x.inter, line 4: item \"99\" is not in the catalogue",
        "x.inter, line 8: it names no user",
    ];
    let examples = [
        report.items_left_out.examples,
        report.rows_left_out.examples,
    ]
    .concat();
    assert!(
        examples
            .iter()
            .zip(places)
            .all(|(example, place)| example.ends_with(place)),
        "{examples:?}"
    );
}

#[test]
fn what_is_wrong_is_said_with_file_line_and_what_was_expected() {
    let inter = |rows: &str| ("x.inter", ITEMS.to_owned(), format!("{HEADER}{rows}"));
    let item = |text: &str| ("x.item", text.to_owned(), HEADER.to_owned());
    for ((file, items, interactions), expected) in [
        (
            inter("a\t11\t2\n"),
            "expected rows of items that the catalogue has, found none",
        ),
        (
            inter("a\t10\tnoon\n"),
            "line 2, column timestamp: expected a timestamp, a number, found \"noon\"",
        ),
        (inter("a\t10\tNaN\n"), "found \"NaN\""),
        (inter("a\t10\n"), "line 2: expected 3 fields"),
        (inter(""), "expected at least one row"),
        (
            item("item_id,title\n1,Emma\n"),
            "line 1: expected fields such as item_id:token",
        ),
        (
            item("item_id:token\tyear:float\n1\t1999\n"),
            "line 1: expected a column title or name",
        ),
        (
            item("movie:token\ttitle:token_seq\n1\tEmma\n"),
            "line 1: expected a column item_id",
        ),
        (
            item("item_id:token\ttitle:token_seq\n1\tA\n1\tB\n"),
            "line 3: expected another item than \"1\", which line 2 has",
        ),
        (
            item("item_id:token\ttitle:token_seq\n\tA\n"),
            "line 2: expected the id of an item, found none",
        ),
        (item("item_id:token\ttitle:token_seq\n"), "holds no item"),
    ] {
        let error = read(&items, &[("x.inter", &interactions)], 10).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(file) && error.contains(expected), "{error}");
    }
}

fn users(choices: &[(&str, f64, u64)]) -> Users {
    let mut users = Users::default();
    for &(user, moment, item) in choices {
        let part = 0;
        users.add(user, Choice { moment, part, item });
    }
    users
}

#[test]
fn a_k_core_is_left_when_users_and_items_have_left_each_other() {
    // Item 3 has one choice, without which v has one, without which item 2 has one.
    let choices = [
        ("u", 0),
        ("u", 1),
        ("v", 2),
        ("v", 3),
        ("w", 0),
        ("w", 1),
        ("w", 2),
    ];
    let choices: Vec<(&str, f64, u64)> = choices
        .iter()
        .map(|&(user, item)| (user, 0.0, item))
        .collect();
    let mut users = users(&choices);
    assert_eq!(users.k_core(2, 4), [true, true, false, false]);
    users.split(SplitBy::LeaveOneOut);
    let [_, _, test] = users.rows(9);
    assert_eq!(
        test,
        [Interaction::of("u", &[0], 1), Interaction::of("w", &[0], 1)]
    );
}

#[test]
fn the_last_tenths_by_time_are_for_the_test_and_for_validation() {
    let choices: Vec<(&str, f64, u64)> = (0..20).map(|place| ("u", place as f64, place)).collect();
    let mut users = users(&choices);
    users.split(SplitBy::Time);
    let targets = users
        .rows(1)
        .map(|rows| rows.iter().map(|row| row.target).collect::<Vec<_>>());
    assert_eq!(
        targets,
        [(1..16).collect::<Vec<_>>(), vec![16, 17], vec![18, 19]]
    );
}
