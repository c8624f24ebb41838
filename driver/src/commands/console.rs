//! What a command prints: at its end a table, or one JSON object, on standard output; on its way notes on standard error.

use std::{
    error::Error,
    fmt,
    io::{self, ErrorKind, Write},
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

/// Prints a value as one JSON object.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print(serde_json::to_string(value)?)
}

/// Notes lines on standard error, for whoever is there to read them: a training goes on where nobody is. They hold names
/// of files, which somebody else may have given.
pub fn note(text: fmt::Arguments) {
    let text = text.to_string();
    let lines: Vec<String> = text.split('\n').map(shown).collect();
    let _ = writeln!(io::stderr().lock(), "{}", lines.join("\n"));
}

/// Whoever read standard output has seen enough, as `head` does. It is no failure.
#[derive(Debug)]
pub struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("standard output is closed")
    }
}

impl Error for OutputClosed {}

/// An empty table whose first column names the rows.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A text as a terminal may show it: with control characters escaped, and those that take no room or turn the direction
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
