//! Reads the items of RecBole's atomic files, `NAME.item`. Fields are separated by tabs, and the first line names them
//! with their types, as in `item_id:token`. The interactions are read by [`crate::data::interactions`].

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail};

use crate::data::{
    catalogue::{Catalogue, Item},
    summary::DataReport,
    text_table::{Layout, Table},
};

/// Reads a `.item` file. The titles are in `title_column`, or else in the one that is called title or name, or the only
/// one whose name ends so.
pub fn read_items(
    path: &Path,
    title_column: Option<&str>,
    report: &mut DataReport,
) -> Result<Catalogue> {
    let mut table = Table::open(path, Layout::Atomic)?;
    let id = table.column("item_id")?;
    let title = match title_column {
        Some(name) => table.column(name)?,
        None => find_title_column(&table)?,
    };
    let mut items: Vec<Item> = Vec::new();
    let mut lines: HashMap<String, u64> = HashMap::new();
    while let Some(line) = table.next_row()? {
        let place = format!("{}, line {line}", path.display());
        let (id, title) = (table.field(id), table.field(title).trim());
        if let Some(first) = lines.insert(id.to_owned(), line) {
            bail!("{place}: expected another item than {id:?}, which line {first} has already");
        }
        if title.is_empty() {
            report.leave_out_item(&place, id)?;
            continue;
        }
        items.push(Item {
            id: id.to_owned(),
            title: title.to_owned(),
        });
    }
    report.add_file(path, &["item_id", &table.columns()[title]], lines.len());
    Catalogue::new(items).with_context(|| path.display().to_string())
}

/// Finds the column of the titles. Exact names come before names that end so, of which there may be one.
fn find_title_column(table: &Table) -> Result<usize> {
    const NAMES: [&str; 4] = ["title", "name", "item_title", "item_name"];
    if let Some(exact) = NAMES.iter().find_map(|name| table.find_column(name)) {
        return Ok(exact);
    }
    let ends = |column: &&String| column.ends_with("_title") || column.ends_with("_name");
    match table.columns().iter().filter(ends).collect::<Vec<_>>()[..] {
        [one] => table.column(one),
        [] => Err(table.expected(
            "a column title or name (or --title-column to say which one it is)",
        )),
        _ => Err(table.expected(
            "one column title or name, or one that ends so (or --title-column to say which one it is)",
        )),
    }
}
