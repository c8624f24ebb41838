//! Reads the files of the paper: `id2name4Rec.json`, `train*.csv` and `test.csv`.

use std::{fmt, path::Path};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use crate::{
    data::{
        catalogue::{Catalogue, Interaction, Item},
        summary::DataReport,
        text_table::{Layout, Table},
    },
    io::text::open_text,
};

/// The columns that are read.
const COLUMNS: [&str; 2] = ["user_id", "item_ids"];
/// How many characters an error shows of a field that is not what was expected.
const SHOWN: usize = 60;

/// The pairs of a JSON object as the file has them: in its order, and with a key that occurs twice.
struct Titles(Vec<(String, Option<String>)>);

impl<'de> Deserialize<'de> for Titles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Titles;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Titles, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Titles(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Reads `id2name4Rec.json`: one object from item ids to titles. An item whose title is null is left out, and one whose
/// title is blank where that is asked for.
pub fn read_catalogue(
    path: &Path,
    leave_out_blank: bool,
    report: &mut DataReport,
) -> Result<Catalogue> {
    let Titles(titles) = serde_json::from_reader(open_text(path)?).map_err(|error| {
        anyhow!(
            "{}, line {}: {error}; expected one JSON object from item ids to titles, such as {{\"1\": \"Emma\"}}",
            path.display(),
            error.line()
        )
    })?;
    report.add_file(path, &["ids", "titles"], titles.len());
    let mut items = Vec::with_capacity(titles.len());
    for (id, title) in titles {
        match title {
            Some(title) if !(leave_out_blank && title.trim().is_empty()) => {
                items.push(Item { id, title });
            }
            _ => report.leave_out_item(&path.display().to_string(), &id)?,
        }
    }
    Catalogue::new(items).with_context(|| path.display().to_string())
}

/// Reads rows of a CSV file with the columns `user_id` and `item_ids` (a list: the history, then the target). Rows that
/// name an item which the catalogue does not have are left out.
pub fn read_interactions(
    path: &Path,
    catalogue: &Catalogue,
    report: &mut DataReport,
) -> Result<Vec<Interaction>> {
    let mut table = Table::open(path, Layout::CommaSeparated)?;
    let [user, items] = COLUMNS.map(|column| table.find_column(column));
    let (Some(user), Some(items)) = (user, items) else {
        return Err(table.expected("the columns user_id, item_ids, timestamp"));
    };
    let (mut interactions, mut count) = (Vec::new(), 0);
    while let Some(line) = table.next_row()? {
        count += 1;
        let place = format!("{}, line {line}", path.display());
        let list = table.field(items);
        let ids = parse_list(list).with_context(|| {
            let shown: String = list.chars().take(SHOWN).collect();
            format!(
                "{place}: expected item_ids to be a list of item ids such as \"[3, 17]\" or \"['B1', 'B2']\", found {shown:?}"
            )
        })?;
        ensure!(
            ids.len() > 1,
            "{place}: expected at least two item ids, a history and the target, found {list:?}"
        );
        let numbers: Result<Vec<u64>, &String> = (ids.iter())
            .map(|id| catalogue.number(id).ok_or(id))
            .collect();
        match numbers {
            Err(unknown) => report.leave_out_row_of(&place, unknown)?,
            Ok(mut history) => interactions.extend(history.pop().map(|target| Interaction {
                user: table.field(user).to_owned(),
                history,
                target,
            })),
        }
    }
    report.add_file(path, &COLUMNS, count);
    ensure!(!interactions.is_empty(), report.nothing_left(path, count));
    Ok(interactions)
}

/// Parses a list of ids as Python and JSON write it: numbers, whose digits are kept as they are, and texts in quotes.
fn parse_list(list: &str) -> Result<Vec<String>> {
    let inside = (list.trim().strip_prefix('[')).and_then(|rest| rest.strip_suffix(']'));
    let mut rest = inside.context("there are no brackets around it")?.trim();
    let mut ids = Vec::new();
    while !rest.is_empty() {
        let (id, behind) = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => parse_quoted(&rest[1..], quote)?,
            _ => {
                let end = rest
                    .find(|end: char| end == ',' || end.is_whitespace())
                    .unwrap_or(rest.len());
                let digits = rest[..end].strip_prefix('-').unwrap_or(&rest[..end]);
                ensure!(
                    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()),
                    "{:?} is neither a whole number nor a text in quotes",
                    &rest[..end]
                );
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        ids.push(id);
        rest = behind.trim_start();
        if !rest.is_empty() {
            let next = rest
                .strip_prefix(',')
                .context("there is no comma between two ids")?;
            rest = next.trim_start();
        }
    }
    Ok(ids)
}

/// Parses a text up to its closing quote, and returns it with what follows.
fn parse_quoted(text: &str, quote: char) -> Result<(String, &str)> {
    let mut id = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some((_, escaped @ ('\\' | '"' | '\'' | '/'))) => id.push(escaped),
                Some((at, 'u')) => {
                    let digits = text.get(at + 1..at + 5).unwrap_or_default();
                    let code = u32::from_str_radix(digits, 16)
                        .ok()
                        .and_then(char::from_u32);
                    id.push(code.context("\\u stands before no four digits of a character")?);
                    characters.nth(3);
                }
                _ => bail!("a backslash stands before no quote and no backslash"),
            },
            _ if character == quote => return Ok((id, &text[at + quote.len_utf8()..])),
            _ => id.push(character),
        }
    }
    bail!("a quote is not closed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data::files::TITLES_FILE, io::folder_of};

    fn read(titles: &str, csv: &str, strict: bool) -> Result<(Vec<Interaction>, DataReport)> {
        let folder = folder_of(&[(TITLES_FILE, titles), ("train.csv", csv)]);
        let mut report = DataReport::new(strict);
        let catalogue = read_catalogue(&folder.path().join(TITLES_FILE), true, &mut report)?;
        let file = folder.path().join("train.csv");
        let rows = read_interactions(&file, &catalogue, &mut report)?;
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
                "line 1: expected the columns user_id, item_ids, timestamp, found the columns user, items",
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
}
