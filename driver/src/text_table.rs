//! Tables in text files, read row by row: comma-separated values, and RecBole's atomic files.

use std::{
    collections::HashSet,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Error, Result, anyhow, bail, ensure};
use csv::{ErrorKind, Reader, ReaderBuilder, StringRecord};

use crate::text_file::open_text;

/// The types that the header of an atomic file may give a field.
const TYPES: [&str; 4] = ["token", "token_seq", "float", "float_seq"];

/// How the fields of a table are told apart, and what its first line says of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Commas between fields, which may be in double quotes. The first line names them.
    CommaSeparated,
    /// RecBole's: tabs between fields, and quotes are letters like others. The first line names the fields with their
    /// types, as in `item_id:token`.
    Atomic,
}

/// A table that is being read.
pub struct Table {
    path: PathBuf,
    reader: Reader<BufReader<File>>,
    columns: Vec<String>,
    record: StringRecord,
}

impl Table {
    /// Opens a table and reads its first line.
    pub fn open(path: &Path, layout: Layout) -> Result<Self> {
        let atomic = layout == Layout::Atomic;
        let mut reader = ReaderBuilder::new()
            .delimiter(if atomic { b'\t' } else { b',' })
            .quoting(!atomic)
            .from_reader(open_text(path)?);
        let headers = reader
            .headers()
            .map_err(|error| explained(error, path, &[]))?;
        ensure!(
            !headers.is_empty(),
            "{}: expected a first line that names the columns, found an empty file",
            path.display()
        );
        let mut columns = Vec::with_capacity(headers.len());
        for header in headers {
            columns.push(match header.split_once(':') {
                _ if !atomic => header.to_owned(),
                Some((name, kind)) if TYPES.contains(&kind) => name.to_owned(),
                _ => bail!(
                    "{}, line 1: expected fields such as item_id:token, separated by tabs and typed {}, found {header:?}",
                    path.display(),
                    TYPES.join(", ")
                ),
            });
        }
        let mut seen = HashSet::new();
        if let Some(twice) = columns.iter().find(|column| !seen.insert(*column)) {
            bail!("{}, line 1: two columns are called {twice}", path.display());
        }
        Ok(Self {
            path: path.to_owned(),
            reader,
            columns,
            record: StringRecord::new(),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the columns, in their order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The place of a column, if there is one of the name.
    pub fn find_column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// The place of a column that has to be there.
    pub fn column(&self, name: &str) -> Result<usize> {
        self.find_column(name)
            .ok_or_else(|| self.expected(&format!("a column {name}")))
    }

    /// The error of a first line that lacks something.
    pub fn expected(&self, what: &str) -> Error {
        anyhow!(
            "{}, line 1: expected {what}, found the columns {}",
            self.path.display(),
            self.columns.join(", ")
        )
    }

    /// Goes to the next row, and gives the number of its first line; `None` behind the last row.
    pub fn next(&mut self) -> Result<Option<u64>> {
        let found = (self.reader.read_record(&mut self.record))
            .map_err(|error| explained(error, &self.path, &self.columns))?;
        let line = self.record.position().map_or(0, csv::Position::line);
        Ok(found.then_some(line))
    }

    /// A field of the row.
    pub fn field(&self, column: usize) -> &str {
        self.record.get(column).unwrap_or_default()
    }
}

/// The error of a row that cannot be read, with its file and its line.
fn explained(error: csv::Error, path: &Path, columns: &[String]) -> Error {
    let line = error.position().map_or(1, csv::Position::line);
    let place = format!("{}, line {line}", path.display());
    match error.kind() {
        ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => anyhow!(
            "{place}: expected {expected_len} fields ({}), found {len}",
            columns.join(", ")
        ),
        ErrorKind::Utf8 { err, .. } => anyhow!(
            "{place}: expected text in UTF-8, found other bytes in field {}: save the file as UTF-8",
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
        while table.next()?.is_some() {
            rows.push(table.record.iter().map(str::to_owned).collect());
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
    fn what_is_wrong_with_a_table_is_said_with_its_line() {
        let (comma, atomic) = (Layout::CommaSeparated, Layout::Atomic);
        for (bytes, layout, expected) in [
            (
                &b"a,b\n1,2\n3\n"[..],
                comma,
                "line 3: expected 2 fields (a, b), found 1",
            ),
            (
                b"a,b\n1,2\n3,\xe9\n",
                comma,
                "line 3: expected text in UTF-8, found other bytes in field 2",
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
