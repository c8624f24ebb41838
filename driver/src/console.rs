//! Reads numbers of options, and prints: results on standard output, as a table or one JSON object, and notes on
//! standard error.

pub mod progress;

use std::{
    error::Error,
    fmt,
    io::{self, ErrorKind, Write},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use serde::Serialize;

/// Prints a line on standard output.
pub fn print(text: impl fmt::Display) -> Result<()> {
    let mut output = io::stdout().lock();
    let printed = writeln!(output, "{text}").and_then(|()| output.flush());
    match printed {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        printed => printed.context("cannot write to standard output"),
    }
}

/// Prints where a file was written to, if [`finish_and_name`](crate::io::output::OutputFile::finish_and_name) says so.
pub fn print_path(path: Option<PathBuf>) -> Result<()> {
    path.map_or(Ok(()), |path| print(path.display()))
}

/// Prints a value as one JSON object.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print(serde_json::to_string(value)?)
}

/// Prints lines on standard error. It does not matter whether anybody can read them. Control characters are escaped,
/// for names of files may hold some.
pub fn note(text: fmt::Arguments) {
    if !QUIET.load(Ordering::Relaxed) {
        error(text);
    }
}

/// Says on standard error what ended the command, also where [`be_quiet`] was called.
pub fn error(text: fmt::Arguments) {
    let text = text.to_string();
    let lines: Vec<String> = text.split('\n').map(shown).collect();
    let _ = writeln!(io::stderr().lock(), "{}", lines.join("\n"));
}

/// Keeps notes back from now on: one of several processes that work together says for all what they do.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

static QUIET: AtomicBool = AtomicBool::new(false);

/// An error that ends a command whose reader has closed standard output, as `head` does. The command has not failed.
#[derive(Debug)]
pub struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("standard output is closed")
    }
}

impl Error for OutputClosed {}

/// Builds an empty table whose first column names the rows.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Parses the value of an option that counts something: a whole number above 0.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("expected a whole number: {error}")),
    }
}

/// Parses the value of an option that is a finite number: JSON, in which a run keeps its options, has no other.
pub fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(number) => Err(format!("expected a finite number, not {number}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Escapes what a terminal should not be sent: control characters, and those that have no width or turn the direction
/// of writing.
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}'
            | '\u{feff}' => {
                shown.extend(character.escape_unicode());
            }
            _ if character.is_control() => shown.extend(character.escape_debug()),
            _ => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_shown_no_control_characters() {
        assert_eq!(shown("Émma – 本"), "Émma – 本");
        assert_eq!(
            shown("\u{1b}[2J\u{7}a\tb\u{9b}\u{202e}\u{feff}"),
            "\\u{1b}[2J\\u{7}a\\tb\\u{9b}\\u{202e}\\u{feff}"
        );
    }
}
