//! Reads files whose rows are objects: JSON lines and Parquet.

use std::{io::BufRead, path::Path};

use anyhow::{Context, Result, bail};
use parquet::{
    file::{reader::FileReader, serialized_reader::SerializedFileReader},
    record::Field,
};
use serde_json::{Map, Value};

use crate::io::{binary, text::open_compressed};

/// The objects of a file, each with the number of its line or row, from 1.
pub type Objects = Box<dyn Iterator<Item = Result<(u64, Map<String, Value>)>>>;

/// Opens a file with one JSON object per line, of which blank lines are no part.
pub fn json_lines(path: &Path) -> Result<Objects> {
    let mut lines = open_compressed(path)?;
    let path = path.to_owned();
    let (mut line, mut text) = (0, String::new());
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            text.clear();
            line += 1;
            let place = || format!("{}, line {line}", path.display());
            match lines.read_line(&mut text) {
                Ok(0) => return None,
                Ok(_) if text.trim().is_empty() => continue,
                Ok(_) => {}
                Err(error) => {
                    return Some(Err(error).with_context(|| format!("cannot read {}", place())));
                }
            }
            let object = serde_json::from_str(&text).with_context(|| {
                format!(
                    "{}: expected one JSON object, such as {{\"item_id\": 7}}",
                    place()
                )
            });
            return Some(object.map(|object| (line, object)));
        }
    })))
}

/// Opens a Parquet file, and returns the names of its columns and its rows.
pub fn parquet(path: &Path) -> Result<(Vec<String>, Objects)> {
    let unreadable = format!(
        "cannot read {} as Parquet, uncompressed or compressed by snappy, gzip or zstd",
        path.display()
    );
    let file = binary::open(path)?;
    let reader = binary::catch_panic(|| SerializedFileReader::new(file))
        .and_then(|reader| Ok(reader?))
        .with_context(|| unreadable.clone())?;
    let schema = reader.metadata().file_metadata().schema();
    let columns = (schema.get_fields().iter())
        .map(|field| field.name().to_owned())
        .collect();
    let mut rows = (1..).zip(reader);
    let mut next = move || {
        let (number, row) = rows.next()?;
        let object = row.map_err(Into::into).and_then(|row| {
            let fields = row.get_column_iter();
            let fields = fields.map(|(name, field)| {
                let value = value(field).with_context(|| format!("row {number}, column {name}"))?;
                Ok((name.clone(), value))
            });
            Ok((number, fields.collect::<Result<_>>()?))
        });
        Some(object)
    };
    let rows = std::iter::from_fn(move || {
        let row = binary::catch_panic(&mut next).transpose()?;
        let row = row.flatten();
        Some(row.with_context(|| unreadable.clone()))
    });
    Ok((columns, Box::new(rows)))
}

/// Returns a field as JSON lines have it: bytes are texts, and times are numbers, in the unit of the column.
fn value(field: &Field) -> Result<Value> {
    Ok(match field {
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => bail!("expected text in UTF-8, found {} other bytes", bytes.len()),
        },
        Field::TimestampMillis(time) | Field::TimestampMicros(time) => (*time).into(),
        Field::Date(days) => (*days).into(),
        // An integer ends in a point there.
        Field::Decimal(_) => match field.to_json_value() {
            Value::String(number) => number.trim_end_matches('.').into(),
            other => other,
        },
        Field::ListInternal(list) => (list.elements().iter())
            .map(value)
            .collect::<Result<Vec<_>>>()?
            .into(),
        _ => field.to_json_value(),
    })
}
