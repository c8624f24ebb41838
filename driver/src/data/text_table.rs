//! Reads tables in text files row by row: comma-separated values, and RecBole's atomic files.

use std::{
    fs::File,
    io::{BufReader, Chain, Read},
    path::{Path, PathBuf},
};

use anyhow::{Error, Result, anyhow, bail, ensure};
use csv::{ErrorKind, Reader, ReaderBuilder, StringRecord, Terminator};

use crate::io::text::open_text;

/// The types that the header of an atomic file may give a field.
const TYPES: [&str; 4] = ["token", "token_seq", "float", "float_seq"];

/// Formats of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Commas between fields, which may be in double quotes. The first line names them.
    CommaSeparated,
    /// RecBole's: tabs between fields, and quotes are letters like others. The first line names the fields with their
    /// types, as in `item_id:token`.
    Atomic,
}

/// A table while it is read.
pub struct Table {
    path: PathBuf,
    reader: Reader<Chain<BufReader<File>, &'static [u8]>>,
    columns: Vec<String>,
    record: StringRecord,
}

impl Table {
    /// Opens a table and reads its first line.
    pub fn open(path: &Path, layout: Layout) -> Result<Self> {
        let atomic = layout == Layout::Atomic;
        // Lines are counted by their ends, so that every row must have one. Rows of another length are said with theirs.
        let reader = ReaderBuilder::new()
            .delimiter(if atomic { b'\t' } else { b',' })
            .quoting(!atomic)
            .terminator(Terminator::Any(b'\n'))
            .has_headers(false)
            .flexible(true)
            .from_reader(open_text(path)?.chain(&b"\n"[..]));
        let mut table = Self {
            path: path.to_owned(),
            reader,
            columns: Vec::new(),
            record: StringRecord::new(),
        };
        let Some(line) = table.read_row()? else {
            bail!(
                "{}: expected a first line that names the columns, found an empty file",
                path.display()
            );
        };
        for place in 0..table.record.len() {
            let header = table.field(place);
            let name = match header.split_once(':') {
                _ if !atomic => header,
                Some((name, kind)) if TYPES.contains(&kind) => name,
                _ => bail!(
                    "{}, line {line}: expected fields such as item_id:token, separated by tabs and typed {}, found {header:?}",
                    path.display(),
                    TYPES.join(", ")
                ),
            };
            ensure!(
                table.find_column(name).is_none(),
                "{}, line {line}: two columns are called {name}",
                path.display()
            );
            let name = name.to_owned();
            table.columns.push(name);
        }
        Ok(table)
    }

    /// Returns the names of the columns, in their order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Returns the place of a column, if there is one of the name.
    pub fn find_column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// Returns the place of a column that has to be there.
    pub fn column(&self, name: &str) -> Result<usize> {
        self.find_column(name)
            .ok_or_else(|| self.expected(&format!("a column {name}")))
    }

    /// Returns the error of a first line that lacks something.
    pub fn expected(&self, what: &str) -> Error {
        anyhow!(
            "{}, line 1: expected {what}, found the columns {}",
            self.path.display(),
            self.columns.join(", ")
        )
    }

    /// Goes to the next row, and returns the number of its first line; `None` after the last row.
    pub fn next_row(&mut self) -> Result<Option<u64>> {
        let line = self.read_row()?;
        if let Some(line) = line {
            ensure!(
                self.record.len() == self.columns.len(),
                "{}, line {line}: expected {} fields ({}), found {}",
                self.path.display(),
                self.columns.len(),
                self.columns.join(", "),
                self.record.len()
            );
        }
        Ok(line)
    }

    /// Returns a field of the row. The end of a line may be that of Windows.
    pub fn field(&self, column: usize) -> &str {
        let field = self.record.get(column).unwrap_or_default();
        match column + 1 == self.record.len() {
            true => field.strip_suffix('\r').unwrap_or(field),
            false => field,
        }
    }

    /// Goes to the next line that is not blank.
    fn read_row(&mut self) -> Result<Option<u64>> {
        loop {
            let found = self.reader.read_record(&mut self.record);
            let behind = self.reader.position().line();
            if !found.map_err(|error| explained(error, &self.path, behind - 1))? {
                return Ok(None);
            }
            if self.record.len() > 1 || !self.field(0).is_empty() {
                let inside: usize = (self.record.iter())
                    .map(|field| field.matches('\n').count())
                    .sum();
                return Ok(Some(behind - 1 - inside as u64));
            }
        }
    }
}

/// Returns the error of a row that cannot be read.
fn explained(error: csv::Error, path: &Path, line: u64) -> Error {
    match error.kind() {
        ErrorKind::Utf8 { err, .. } => anyhow!(
            "{}, line {line}: expected text in UTF-8, found other bytes in field {}: save the file as UTF-8",
            path.display(),
            err.field() + 1
        ),
        _ => Error::from(error).context(format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(bytes: &[u8], layout: Layout) -> Result<Vec<Vec<String>>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("table");
        fs::write(&path, bytes)?;
        let mut table = Table::open(&path, layout)?;
        let mut rows = vec![table.columns().to_vec()];
        while table.next_row()?.is_some() {
            let fields = (0..table.record.len()).map(|column| table.field(column).to_owned());
            rows.push(fields.collect());
        }
        Ok(rows)
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_column_in_either_layout() {
        let comma = read(
            "\u{feff}a,b\n1,\"2, 3\"\n".as_bytes(),
            Layout::CommaSeparated,
        );
        assert_eq!(comma.unwrap(), [["a", "b"], ["1", "2, 3"]]);
        let atomic = read(
            "\u{feff}a:token\tb:float\r\n\"1\t2\r\n".as_bytes(),
            Layout::Atomic,
        );
        assert_eq!(atomic.unwrap(), [["a", "b"], ["\"1", "2"]]);
    }

    #[test]
    fn lines_are_counted_whatever_ends_them_and_whatever_is_between() {
        let text = "a,b\n1,2\n\n3,\"4\n5\"\n6,7\n\n\n8,9";
        for (text, layout) in [
            (text.to_owned(), Layout::CommaSeparated),
            (text.replace('\n', "\r\n"), Layout::CommaSeparated),
            (
                "a:token\tb:float\r\n1\t2\r\n\r\n3\t4\r\n\r\n5\t6\r\n".into(),
                Layout::Atomic,
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("table");
            fs::write(&path, &text).unwrap();
            let mut table = Table::open(&path, layout).unwrap();
            let mut lines = Vec::new();
            while let Some(line) = table.next_row().unwrap() {
                lines.push(line);
                assert!(!table.field(1).ends_with('\r'));
            }
            let expected: &[u64] = match layout {
                Layout::CommaSeparated => &[2, 4, 6, 9],
                Layout::Atomic => &[2, 4, 6],
            };
            assert_eq!(lines, expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_table_is_said_with_its_line() {
        let (comma, atomic) = (Layout::CommaSeparated, Layout::Atomic);
        for (bytes, layout, expected) in [
            (
                &b"a,b\n1,2\n3\n"[..],
                comma,
                "line 3: expected 2 fields (a, b), found 1",
            ),
            (
                b"a,b\n1,2\n\n3,\xe9\n",
                comma,
                "line 4: expected text in UTF-8, found other bytes in field 2",
            ),
            (b"a\xe9,b\n", comma, "line 1: expected text in UTF-8"),
            (b"a,b,a\n", comma, "line 1: two columns are called a"),
            (
                b"a:token\ta:float\n",
                atomic,
                "line 1: two columns are called a",
            ),
            (
                b"a:token\tb\n",
                atomic,
                "line 1: expected fields such as item_id:token",
            ),
            (b"", atomic, "found an empty file"),
            (b"", comma, "found an empty file"),
        ] {
            let error = format!("{:#}", read(bytes, layout).unwrap_err());
            assert!(
                error.contains("table") && error.contains(expected),
                "{error}"
            );
        }
    }
}
