//! Reads and writes files of one JSON value.

use std::{cell::RefCell, fmt, fs, marker::PhantomData, path::Path};

use anyhow::{Context, Error, Result, anyhow};
use serde::{
    Serialize,
    de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, Visitor},
};

use crate::io::text::{open_text, read_text};

/// Writes a file of one JSON value.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a file of one JSON value.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read_text(path)?).with_context(|| path.display().to_string())
}

/// Reads a file of one JSON object, entry by entry in the order of the file, and returns their number. A key may occur
/// twice. `expected` says in errors what the file should be. Those of `each` are returned as they are.
pub fn read_object<V: DeserializeOwned>(
    path: &Path,
    expected: &str,
    mut each: impl FnMut(String, V) -> Result<()>,
) -> Result<usize> {
    let refused = RefCell::new(None);
    let entries = Entries {
        each: &mut each,
        refused: &refused,
        values: PhantomData,
    };
    let mut reader = serde_json::Deserializer::from_reader(open_text(path)?);
    let read = (entries.deserialize(&mut reader)).and_then(|count| reader.end().map(|()| count));
    if let Some(refused) = refused.take() {
        return Err(refused);
    }
    read.map_err(|error| {
        anyhow!(
            "{}, line {}: {error}; expected {expected}",
            path.display(),
            error.line()
        )
    })
}

/// Visits the entries of an object.
struct Entries<'a, F, V> {
    each: &'a mut F,
    /// The error of `each`, which serde would keep as a text alone.
    refused: &'a RefCell<Option<Error>>,
    values: PhantomData<V>,
}

impl<'de, V: DeserializeOwned, F: FnMut(String, V) -> Result<()>> DeserializeSeed<'de>
    for Entries<'_, F, V>
{
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, V: DeserializeOwned, F: FnMut(String, V) -> Result<()>> Visitor<'de>
    for Entries<'_, F, V>
{
    type Value = usize;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
        let mut count = 0;
        while let Some((key, value)) = map.next_entry()? {
            count += 1;
            (self.each)(key, value).map_err(|error| {
                self.refused.replace(Some(error));
                serde::de::Error::custom("refused")
            })?;
        }
        Ok(count)
    }
}
