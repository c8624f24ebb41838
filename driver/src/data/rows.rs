//! Reads rows that are a history and the item after it each: the paper's CSV files, those of MiniOneRec, and RecBole's
//! benchmark files with a column `item_id_list`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::data::{
    catalogue::{Catalogue, Interaction},
    summary::DataReport,
    table::{Layout, Table},
};

/// The columns of the histories that are known, each with the column of the item that came next. Without one, that item
/// is the last of the list.
const HISTORIES: [(&str, Option<&str>); 3] = [
    ("item_ids", None),
    ("history_item_id", Some("item_id")),
    (HISTORY_COLUMN, Some("item_id")),
];
/// The column of the history of a row of a RecBole benchmark file.
const HISTORY_COLUMN: &str = "item_id_list";
/// How many characters an error shows of a field that is not what was expected.
const SHOWN: usize = 60;

/// Tells whether the rows of a benchmark file have their own histories.
pub fn has_histories(path: &Path) -> Result<bool> {
    let table = Table::open(path, Layout::Atomic)?;
    Ok(table.find_column(HISTORY_COLUMN).is_some())
}

/// Reads rows with the last `history` items of their lists. Rows that name an item which the catalogue does not have are
/// left out.
pub fn read_rows(
    path: &Path,
    layout: Layout,
    history: usize,
    catalogue: &Catalogue,
    report: &mut DataReport,
) -> Result<Vec<Interaction>> {
    let mut table = Table::open(path, layout)?;
    let known = HISTORIES
        .iter()
        .find_map(|&(list, next)| Some((table.find_column(list)?, list, next)));
    let (Some(user), Some((list, list_name, next_name))) = (table.find_column("user_id"), known)
    else {
        return Err(table.expected(
            "the columns user_id and item_ids, or user_id, history_item_id and item_id",
        ));
    };
    let next = next_name.map(|name| table.column(name)).transpose()?;
    let (mut rows, mut count) = (Vec::new(), 0);
    while table.next_row()?.is_some() {
        count += 1;
        let place = table.place();
        let text = table.field(list);
        let mut ids = match layout {
            Layout::Atomic => text.split_whitespace().map(str::to_owned).collect(),
            _ => parse_list(text).with_context(|| {
                let shown: String = text.chars().take(SHOWN).collect();
                format!(
                    "{place}: expected {list_name} to be a list of item ids such as \"[3, 17]\" or \"['B1', 'B2']\", \
                     found {shown:?}"
                )
            })?,
        };
        match next {
            Some(next) => ids.push(table.field(next).to_owned()),
            None => ensure!(
                ids.len() > 1,
                "{place}: expected at least two item ids, a history and the target, found {text:?}"
            ),
        }
        let numbers: Result<Vec<u64>, &String> = (ids.iter())
            .map(|id| catalogue.number(id).ok_or(id))
            .collect();
        match numbers {
            Err(unknown) => report.leave_out_row_of(&place, unknown)?,
            Ok(mut numbers) => match numbers.pop() {
                Some(target) if !numbers.is_empty() => rows.push(Interaction {
                    user: table.field(user).to_owned(),
                    history: numbers.split_off(numbers.len().saturating_sub(history)),
                    target,
                }),
                _ => report.leave_out_row(&place, &format!("{list_name} is empty"))?,
            },
        }
    }
    let columns = ["user_id", list_name].into_iter().chain(next_name);
    report.add_file(path, &columns.collect::<Vec<_>>(), count);
    ensure!(!rows.is_empty(), report.nothing_left(path, count));
    Ok(rows)
}

/// Parses a list of ids as Python and JSON write it: numbers, whose digits are kept as they are, and texts in quotes.
pub fn parse_list(list: &str) -> Result<Vec<String>> {
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
mod tests;
