//! Reads tables in text files row by row: comma- and tab-separated values, RecBole's atomic files, and JSON lines.

use std::{
    io::{BufRead, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use csv::{ErrorKind, Reader, ReaderBuilder, StringRecord, Terminator};
use serde_json::{Map, Value};

use crate::io::{file_name, text::open_compressed};

/// The types that the header of an atomic file may give a field.
const TYPES: [&str; 4] = ["token", "token_seq", "float", "float_seq"];

/// Formats of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Commas between fields, which may be in double quotes. The first line names them.
    CommaSeparated,
    /// The same with tabs in the place of commas.
    TabSeparated,
    /// RecBole's: tabs between fields, and quotes are letters like others. The first line names the fields with their
    /// types, as in `item_id:token`.
    Atomic,
    /// One JSON object per line, of which the first names the columns.
    JsonLines,
}

impl Layout {
    /// Returns the format that the name of a file tells.
    pub fn of(path: &Path) -> Result<Self> {
        let name = file_name(path).to_lowercase();
        let unpacked = [".gz", ".zst"]
            .iter()
            .find_map(|ending| name.strip_suffix(ending));
        let ends = |endings: &[&str]| {
            let name = unpacked.unwrap_or(&name);
            endings.iter().any(|ending| name.ends_with(ending))
        };
        Ok(match () {
            () if ends(&[".csv"]) => Self::CommaSeparated,
            () if ends(&[".tsv"]) => Self::TabSeparated,
            () if ends(&[".item", ".inter"]) => Self::Atomic,
            () if ends(&[".jsonl", ".ndjson", ".json"]) => Self::JsonLines,
            () => bail!(
                "{}: expected a table whose name ends in .csv, .tsv, .jsonl, .item or .inter, and perhaps in .gz or .zst \
                 after that",
                path.display()
            ),
        })
    }
}

/// A table while it is read.
pub struct Table {
    path: PathBuf,
    rows: Rows,
    columns: Vec<String>,
    record: StringRecord,
    /// The first line of the row that was read last.
    line: u64,
}

enum Rows {
    Separated(Box<Reader<Box<dyn Read>>>),
    JsonLines {
        lines: Box<dyn BufRead>,
        /// The object of the first line, which names the columns.
        first: Option<Map<String, Value>>,
        /// Number of lines that were read.
        line: u64,
    },
}

impl Table {
    /// Opens a table and reads the names of its columns.
    pub fn open(path: &Path, layout: Layout) -> Result<Self> {
        let mut table = Self {
            path: path.to_owned(),
            rows: Rows::open(path, layout)?,
            columns: Vec::new(),
            record: StringRecord::new(),
            line: 0,
        };
        let empty = || {
            anyhow!(
                "{}: expected a first line that names the columns, found an empty file",
                path.display()
            )
        };
        if layout == Layout::JsonLines {
            let object = table.next_object()?.ok_or_else(empty)?;
            table.columns = object.keys().cloned().collect();
            if let Rows::JsonLines { first, .. } = &mut table.rows {
                *first = Some(object);
            }
            return Ok(table);
        }
        ensure!(table.read_row()?, empty());
        for place in 0..table.record.len() {
            let header = table.field(place);
            let name = match header.split_once(':') {
                _ if layout != Layout::Atomic => header,
                Some((name, kind)) if TYPES.contains(&kind) => name,
                _ => bail!(
                    "{}: expected fields such as item_id:token, separated by tabs and typed {}, found {header:?}",
                    table.place(),
                    TYPES.join(", ")
                ),
            };
            ensure!(
                table.find_column(name).is_none(),
                "{}: two columns are called {name}",
                table.place()
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

    /// Returns the file and the line of the row, for messages.
    pub fn place(&self) -> String {
        format!("{}, line {}", self.path.display(), self.line)
    }

    /// Goes to the next row, and returns the number of its first line; `None` after the last row.
    pub fn next_row(&mut self) -> Result<Option<u64>> {
        if let Rows::JsonLines { .. } = self.rows {
            let Some(object) = self.next_object()? else {
                return Ok(None);
            };
            self.record.clear();
            for column in &self.columns {
                self.record.push_field(&cell(object.get(column)));
            }
            return Ok(Some(self.line));
        }
        if !self.read_row()? {
            return Ok(None);
        }
        ensure!(
            self.record.len() == self.columns.len(),
            "{}: expected {} fields ({}), found {}",
            self.place(),
            self.columns.len(),
            self.columns.join(", "),
            self.record.len()
        );
        Ok(Some(self.line))
    }

    /// Returns a field of the row. The end of a line may be that of Windows.
    pub fn field(&self, column: usize) -> &str {
        let field = self.record.get(column).unwrap_or_default();
        match column + 1 == self.record.len() {
            true => field.strip_suffix('\r').unwrap_or(field),
            false => field,
        }
    }

    /// Goes to the next line of separated fields that is not blank, if there is one.
    fn read_row(&mut self) -> Result<bool> {
        let Rows::Separated(reader) = &mut self.rows else {
            return Ok(false);
        };
        loop {
            let found = reader.read_record(&mut self.record);
            let behind = reader.position().line();
            if !found.map_err(|error| explained(error, &self.path, behind - 1))? {
                return Ok(false);
            }
            if self.record.len() > 1 || !matches!(self.record.get(0), None | Some("" | "\r")) {
                let inside: usize = (self.record.iter())
                    .map(|field| field.matches('\n').count())
                    .sum();
                self.line = behind - 1 - inside as u64;
                return Ok(true);
            }
        }
    }

    /// Returns the object of the next line that is not blank.
    fn next_object(&mut self) -> Result<Option<Map<String, Value>>> {
        let Rows::JsonLines { lines, first, line } = &mut self.rows else {
            return Ok(None);
        };
        if let Some(object) = first.take() {
            return Ok(Some(object));
        }
        let mut text = String::new();
        while text.trim().is_empty() {
            text.clear();
            *line += 1;
            self.line = *line;
            let read = lines.read_line(&mut text);
            if read.with_context(|| format!("cannot read {}, line {line}", self.path.display()))?
                == 0
            {
                return Ok(None);
            }
        }
        let object = serde_json::from_str(&text);
        object.map(Some).with_context(|| {
            format!(
                "{}, line {line}: expected one JSON object, such as {{\"item_id\": 7}}",
                self.path.display()
            )
        })
    }
}

impl Rows {
    fn open(path: &Path, layout: Layout) -> Result<Self> {
        let text = open_compressed(path)?;
        if layout == Layout::JsonLines {
            return Ok(Self::JsonLines {
                lines: text,
                first: None,
                line: 0,
            });
        }
        // Lines are counted by their ends, so that every row must have one. Rows of another length are said with theirs.
        let text: Box<dyn Read> = Box::new(text.chain(&b"\n"[..]));
        let reader = ReaderBuilder::new()
            .delimiter(if layout == Layout::CommaSeparated {
                b','
            } else {
                b'\t'
            })
            .quoting(layout != Layout::Atomic)
            .terminator(Terminator::Any(b'\n'))
            .has_headers(false)
            .flexible(true)
            .from_reader(text);
        Ok(Self::Separated(Box::new(reader)))
    }
}

/// Returns the text of a field of an object: of a list, its JSON.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
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
mod tests;
