//! Reads the catalogue of the paper's format, `id2name4Rec.json`. Its rows, `train*.csv` and `test.csv`, are read by
//! [`crate::data::rows`].

use std::path::Path;

use anyhow::{Context, Result};

use crate::{
    data::{
        catalogue::{Catalogue, Item},
        summary::DataReport,
    },
    io::json::read_object,
};

/// Reads `id2name4Rec.json`: one object from item ids to titles. An item whose title is null is left out, and one whose
/// title is blank where that is asked for.
pub fn read_catalogue(
    path: &Path,
    leave_out_blank: bool,
    report: &mut DataReport,
) -> Result<Catalogue> {
    let mut items = Vec::new();
    let expected = r#"one JSON object from item ids to titles, such as {"1": "Emma"}"#;
    let count = read_object(
        path,
        expected,
        |id: String, title: Option<String>| match title {
            Some(title) if !(leave_out_blank && title.trim().is_empty()) => {
                items.push(Item { id, title });
                Ok(())
            }
            _ => report.leave_out_item(&path.display().to_string(), &id),
        },
    )?;
    report.add_file(path, &["ids", "titles"], count);
    Catalogue::new(items).with_context(|| path.display().to_string())
}
