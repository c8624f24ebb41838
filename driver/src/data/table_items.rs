//! Reads the items of a table, such as RecBole's `NAME.item`: a row for each, with its id, its title and perhaps its
//! codes.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail, ensure};

use crate::data::{
    catalogue::{Catalogue, Identifier, Item},
    summary::DataReport,
    table::{Layout, Table},
};

/// Reads the items of a table. The titles are in `title_column`, or else in the one that is called title or name, or the
/// only one whose name ends so. An item without a title is left out where items are identified by titles.
pub fn read_items(
    path: &Path,
    layout: Layout,
    id_column: &str,
    title_column: Option<&str>,
    identifier: Identifier,
    report: &mut DataReport,
) -> Result<Catalogue> {
    let mut table = Table::open(path, layout)?;
    let id = table.column(id_column)?;
    let title = match title_column {
        Some(name) => Some(table.column(name)?),
        None if identifier.needs_title() => Some(find_title_column(&table)?),
        None => find_title_column(&table).ok(),
    };
    let mut items: Vec<Item> = Vec::new();
    let mut lines: HashMap<String, u64> = HashMap::new();
    while let Some(line) = table.next_row()? {
        let id = table.field(id);
        ensure!(
            !id.is_empty(),
            "{}: expected the id of an item, found none",
            table.place()
        );
        if let Some(first) = lines.insert(id.to_owned(), line) {
            bail!(
                "{}: expected another item than {id:?}, which {} has already",
                table.place(),
                table.place_of(first)
            );
        }
        let title = title.map_or("", |title| table.field(title).trim());
        if title.is_empty() && identifier.needs_title() {
            report.leave_out_item(&table.place(), id)?;
            continue;
        }
        items.push(Item {
            id: id.to_owned(),
            title: title.to_owned(),
        });
    }
    let title = title.map(|title| table.columns()[title].as_str());
    let columns: Vec<&str> = [id_column].into_iter().chain(title).collect();
    report.add_file(path, &columns, lines.len());
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
