//! Reads tables row by row: comma- and tab-separated values, RecBole's atomic files, JSON lines and Parquet.

mod objects;

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Error, Result, anyhow, bail, ensure};
use csv::{ErrorKind, Reader, ReaderBuilder, StringRecord, Terminator};
use serde_json::Value;

use crate::io::{file_name, text::open_compressed};

use objects::Objects;

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
    /// Apache Parquet, whose schema names the columns.
    Parquet,
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
            // It compresses its columns itself.
            () if name.ends_with(".parquet") => Self::Parquet,
            () => bail!(
                "{}: expected a table whose name ends in .csv, .tsv, .jsonl, .item or .inter, and perhaps in .gz or .zst \
                 after that, or in .parquet",
                path.display()
            ),
        })
    }
}

/// A table while it is read.
pub struct Table {
    path: PathBuf,
    layout: Layout,
    rows: Rows,
    columns: Vec<String>,
    record: StringRecord,
    /// The first line of the row that was read last; in Parquet, its number.
    line: u64,
}

enum Rows {
    Separated(Box<Reader<Box<dyn Read>>>),
    Objects(Objects),
}

impl Table {
    /// Opens a table and reads the names of its columns.
    pub fn open(path: &Path, layout: Layout) -> Result<Self> {
        let (rows, columns) = match layout {
            Layout::JsonLines => {
                let mut objects = objects::json_lines(path)?.peekable();
                let columns = match objects.peek() {
                    Some(Ok((_, first))) => first.keys().cloned().collect(),
                    Some(Err(_)) => Vec::new(),
                    None => return Err(without_columns(path)),
                };
                (Rows::Objects(Box::new(objects)), columns)
            }
            Layout::Parquet => {
                let (columns, rows) = objects::parquet(path)?;
                (Rows::Objects(rows), columns)
            }
            _ => (Rows::separated(path, layout)?, Vec::new()),
        };
        let mut table = Self {
            path: path.to_owned(),
            layout,
            rows,
            columns,
            record: StringRecord::new(),
            line: 0,
        };
        if let Rows::Separated(_) = table.rows {
            table.read_header()?;
        }
        Ok(table)
    }

    /// Reads the first line, which names the columns.
    fn read_header(&mut self) -> Result<()> {
        ensure!(self.read_row()?, without_columns(&self.path));
        for place in 0..self.record.len() {
            let header = self.field(place);
            let name = match header.split_once(':') {
                _ if self.layout != Layout::Atomic => header,
                Some((name, kind)) if TYPES.contains(&kind) => name,
                _ => bail!(
                    "{}: expected fields such as item_id:token, separated by tabs and typed {}, found {header:?}",
                    self.place(),
                    TYPES.join(", ")
                ),
            };
            ensure!(
                self.find_column(name).is_none(),
                "{}: two columns are called {name}",
                self.place()
            );
            let name = name.to_owned();
            self.columns.push(name);
        }
        Ok(())
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
        let line = match self.layout {
            Layout::Parquet => "",
            _ => ", line 1",
        };
        anyhow!(
            "{}{line}: expected {what}, found the columns {}",
            self.path.display(),
            self.columns.join(", ")
        )
    }

    /// Returns the file and the line of the row, for messages.
    pub fn place(&self) -> String {
        format!("{}, {}", self.path.display(), self.place_of(self.line))
    }

    /// Returns what a number of a line is called in a message.
    pub fn place_of(&self, line: u64) -> String {
        match self.layout {
            Layout::Parquet => format!("row {line}"),
            _ => format!("line {line}"),
        }
    }

    /// Goes to the next row, and returns the number of its first line; `None` after the last row.
    pub fn next_row(&mut self) -> Result<Option<u64>> {
        if let Rows::Objects(objects) = &mut self.rows {
            let Some((line, object)) = objects.next().transpose()? else {
                return Ok(None);
            };
            self.line = line;
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
}

impl Rows {
    fn separated(path: &Path, layout: Layout) -> Result<Self> {
        // Lines are counted by their ends, so that every row must have one. Rows of another length are said with theirs.
        let text: Box<dyn Read> = Box::new(open_compressed(path)?.chain(&b"\n"[..]));
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

/// Returns the error of a file without a first line.
fn without_columns(path: &Path) -> Error {
    anyhow!(
        "{}: expected a first line that names the columns, found an empty file",
        path.display()
    )
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
