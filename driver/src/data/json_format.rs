//! Reads the files that LC-Rec, MiniOneRec and APAO share beside a semantic-ID index: `NAME.item.json`, one object from
//! item ids to objects of texts, and `NAME.inter.json`, one object from users to lists of item ids, oldest first.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::{
    data::{
        catalogue::{Catalogue, Identifier, Item},
        interactions::{Choice, Users},
        summary::DataReport,
    },
    io::json::read_object,
};

/// The field of the title.
const TITLE: &str = "title";

/// Reads `NAME.item.json`. The titles are in the field `title_column`, or else in the one that is called title. An item
/// without a title is left out where items are identified by titles.
pub fn read_items(
    path: &Path,
    title_column: Option<&str>,
    identifier: Identifier,
    report: &mut DataReport,
) -> Result<Catalogue> {
    let column = title_column.unwrap_or(TITLE);
    let mut items = Vec::new();
    let (mut fields, mut found) = (BTreeSet::new(), false);
    let expected =
        r#"one JSON object from item ids to objects of texts, such as {"1": {"title": "Emma"}}"#;
    let count = read_object(path, expected, |id: String, texts: Map<String, Value>| {
        found |= texts.contains_key(column);
        if !found {
            fields.extend(texts.keys().cloned());
        }
        let title = texts.get(column).and_then(text_of).unwrap_or_default();
        let title = title.trim().to_owned();
        if title.is_empty() && identifier.needs_title() {
            return report.leave_out_item(&path.display().to_string(), &id);
        }
        items.push(Item { id, title });
        Ok(())
    })?;
    if count > 0 && !found {
        let fields: Vec<String> = fields.into_iter().collect();
        bail!(
            "{}: expected a field {column} of the items, found the fields {}: --title-column says which one is the title",
            path.display(),
            fields.join(", ")
        );
    }
    report.add_file(path, &["ids", column], count);
    Catalogue::new(items).with_context(|| path.display().to_string())
}

/// Adds the choices of `NAME.inter.json`: each user's items, oldest first.
pub fn read_users(
    path: &Path,
    catalogue: &Catalogue,
    users: &mut Users,
    report: &mut DataReport,
) -> Result<()> {
    let expected =
        r#"one JSON object from users to lists of item ids, oldest first, such as {"7": [3, 17]}"#;
    let (mut rows, mut known) = (0, 0);
    read_object(path, expected, |user: String, ids: Vec<Value>| {
        let place = || format!("{}, user {user:?}", path.display());
        for (moment, id) in ids.iter().enumerate() {
            rows += 1;
            let Some(id) = text_of(id) else {
                bail!("{}: expected item ids, found {id}", place());
            };
            let Some(item) = catalogue.number(&id) else {
                report.leave_out_row_of(&place(), &id)?;
                continue;
            };
            known += 1;
            let (moment, part) = (moment as f64, 0);
            users.add(&user, Choice { moment, part, item });
        }
        Ok(())
    })?;
    report.add_file(path, &["users", "items"], rows);
    ensure!(known > 0, report.nothing_left(path, rows));
    Ok(())
}

/// Returns a text or a number as a text, and texts of a list one after another; `None` for anything else.
pub fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(texts) => {
            let texts: Option<Vec<&str>> = texts.iter().map(Value::as_str).collect();
            Some(texts?.join(" "))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
