//! Reports what was read of data files, and what was left out.

use std::{
    collections::HashSet,
    fmt::{self, Display, Formatter},
    path::Path,
};

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::{
    console::shown,
    data::catalogue::{Catalogue, Identifier},
};

/// How many of what was left out are shown.
const EXAMPLES: usize = 3;

/// An account of data files as they are read. Every command that reads a folder prints it.
#[derive(Debug, Default)]
pub struct DataReport {
    strict: bool,
    files: Vec<String>,
    untitled: HashSet<String>,
    /// Items that were left out because they have no title.
    pub items_left_out: LeftOut,
    /// Rows that were left out because they name an item that the catalogue does not have.
    pub rows_left_out: LeftOut,
}

/// A count of what was left out, with the first examples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The number of items or rows.
    pub count: usize,
    /// The first of them: the file, the line and what is wrong.
    pub examples: Vec<String>,
}

impl LeftOut {
    fn add(&mut self, place: &str, why: &str, strict: bool) -> Result<()> {
        ensure!(!strict, "{place}: {why}; without --strict it is left out");
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(format!("{place}: {why}"));
        }
        Ok(())
    }

    fn warning(&self, what: [&str; 2]) -> Option<String> {
        let more = self.count - self.examples.len();
        let more = (more > 0).then(|| format!("{more} more"));
        let examples: Vec<String> = self.examples.iter().cloned().chain(more).collect();
        (self.count > 0).then(|| {
            format!(
                "warning: left out {} {}: {}",
                self.count,
                what[usize::from(self.count > 1)],
                examples.join("; ")
            )
        })
    }
}

impl DataReport {
    /// Begins an account. With `strict`, what would be left out is an error.
    pub fn new(strict: bool) -> Self {
        Self {
            strict,
            ..Self::default()
        }
    }

    /// Adds a file that was read, with the columns that were used.
    pub fn add_file(&mut self, path: &Path, columns: &[&str], rows: usize) {
        let columns = columns.join(", ");
        self.files
            .push(format!("{} ({columns}; {rows} rows)", path.display()));
    }

    /// Leaves out an item without a title.
    pub fn leave_out_item(&mut self, place: &str, id: &str) -> Result<()> {
        self.untitled.insert(id.to_owned());
        let why = format!("item {id:?} has no title");
        self.items_left_out.add(place, &why, self.strict)
    }

    /// Leaves out a row that names an item which the catalogue does not have.
    pub fn leave_out_row_of(&mut self, place: &str, id: &str) -> Result<()> {
        let why = match self.untitled.contains(id) {
            true => format!("item {id:?} has no title"),
            false => format!("item {id:?} is not in the catalogue"),
        };
        self.leave_out_row(place, &why)
    }

    /// Leaves out a row for another reason.
    pub fn leave_out_row(&mut self, place: &str, why: &str) -> Result<()> {
        self.rows_left_out.add(place, why, self.strict)
    }

    /// Returns the message of a file of whose rows nothing is left.
    pub fn nothing_left(&self, path: &Path, rows: usize) -> String {
        let path = path.display();
        if rows == 0 {
            return format!("{path}: expected at least one row after the header");
        }
        let examples = self.rows_left_out.examples.join("; ");
        format!(
            "{path}: expected rows of items that the catalogue has, found none in {rows} rows ({examples})"
        )
    }

    /// Says on standard error what was read and what was left out, and warns where most titles are the same.
    pub fn print(&self, catalogue: &Catalogue) {
        let (items, names) = (catalogue.items().len(), catalogue.distinct_names());
        let what = match catalogue.identifier() {
            Identifier::Title => "titles",
            Identifier::Codes => "paths of codes",
            Identifier::CodesTitle => "codes with titles",
        };
        eprintln!("{self}: {items} items with {names} different {what}");
        let warnings = [
            self.items_left_out.warning(["item", "items"]),
            self.rows_left_out.warning(["row", "rows"]),
            (2 * names < items && catalogue.identifier() == Identifier::Title).then(|| {
                "warning: fewer than half of the titles are different, and items of one title cannot be told apart: is \
                 this the column of the titles? --title-column names another of a .item file"
                    .into()
            }),
        ];
        for warning in warnings.into_iter().flatten() {
            eprintln!("{}", shown(&warning));
        }
    }
}

impl Display for DataReport {
    fn fmt(&self, formatter: &mut Formatter) -> fmt::Result {
        write!(formatter, "read {}", shown(&self.files.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_of_what_was_left_out_are_shown_and_the_others_counted() {
        let mut report = DataReport::new(false);
        report.leave_out_item("x.item, line 2", "7").unwrap();
        for line in 2..7 {
            report
                .leave_out_row_of(&format!("x.inter, line {line}"), "7")
                .unwrap();
        }
        report.leave_out_row_of("x.inter, line 9", "07").unwrap();
        assert_eq!(report.items_left_out.count, 1);
        let warning = report.rows_left_out.warning(["row", "rows"]).unwrap();
        assert!(
            warning
                .starts_with("warning: left out 6 rows: x.inter, line 2: item \"7\" has no title;")
                && warning.ends_with("; 3 more"),
            "{warning}"
        );
        let error = DataReport::new(true).leave_out_row_of("x.inter, line 9", "07");
        assert_eq!(
            error.unwrap_err().to_string(),
            "x.inter, line 9: item \"07\" is not in the catalogue; without --strict it is left out"
        );
    }
}
