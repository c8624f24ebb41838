//! A trie as one safetensors file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use bytemuck::{Pod, cast_slice, pod_collect_to_vec};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};

use super::TokenTrie;
use super::leaves::Leaves;
use crate::array::{Array, Mapped};
use crate::sets::TokenSets;
use crate::{Error, Result};

pub(super) const WHAT: &str = "trie file";
const FORMAT: &str = "candle-trie";
/// The version of the format. It is raised whenever an older reader would misread what a newer writer wrote.
const VERSION: &str = "1";

impl TokenTrie {
    /// Writes the trie to one safetensors file: `offsets`, `tokens`, `leaves`, `item_offsets`, `items_by_id` (u32)
    /// and `items` (u64), with the format, its version and the largest token in the metadata.
    ///
    /// `items_by_id` has the places in `items` in the order of the ids there. It spares a trie that is
    /// [opened](Self::open) the sort that [`leaves_of`](Self::leaves_of) would need, and is computed here if it was not yet.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        write(path, &self.file_parts()).map_err(|source| io_error(path, source))
    }

    /// Returns the bytes of the file that [`save`](Self::save) writes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.file_parts().concat()
    }

    /// Returns the bytes of the file: the header, and the arrays behind it.
    fn file_parts(&self) -> Vec<Cow<'_, [u8]>> {
        let (offsets, tokens) = self.raw();
        let leaves = &self.leaves;
        // The widest first, so that each begins at a multiple of its own width.
        let arrays = [
            Stored::new("items", leaves.items()),
            Stored::new("offsets", offsets),
            Stored::new("tokens", tokens),
            Stored::new("leaves", leaves.nodes()),
            Stored::new("item_offsets", leaves.offsets()),
            Stored::new("items_by_id", leaves.by_id()),
        ];
        let mut parts = vec![Cow::Owned(header(self.max_token(), &arrays))];
        parts.extend(arrays.map(|array| array.bytes));
        parts
    }

    /// Reads a trie that [`save`](Self::save) wrote into memory.
    ///
    /// Everything is checked first: a damaged or hostile file is an error, never a wrong trie, and
    /// nothing larger than the file itself is allocated for it. [`open`](Self::open) reads less.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read, and [`Error::MalformedFile`] where it is no trie.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| io_error(path, error))?;
        Self::from_bytes(&bytes).map_err(|error| named(path, error))
    }

    /// Reads a trie from the bytes of a file that [`save`](Self::save) wrote, or from [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// [`Error::Malformed`] says what is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let trie = read(bytes, None)?;
        trie.verify()?;
        Ok(trie)
    }

    /// Checks all of a trie that was [opened](Self::open), as [`load`](Self::load) does. This reads the whole file. Tries that
    /// were made otherwise are sound.
    ///
    /// # Errors
    /// [`Error::Malformed`] says what is wrong first.
    pub fn verify(&self) -> Result<()> {
        let (offsets, tokens) = self.raw();
        check_nodes(offsets, tokens)?;
        self.leaves.check(offsets)?;
        self.sets.check()
    }
}

/// Reads a trie from the bytes of a file, which may be mapped: its arrays then stay there. The header and the lengths of the
/// arrays are checked, and what the arrays hold is not.
pub(super) fn read(bytes: &[u8], mapped: Option<&Arc<Mmap>>) -> Result<TokenTrie> {
    let metadata = metadata(bytes)?;
    let tensors = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let source = Source { tensors, mapped };
    let (offsets, tokens) = (source.array("offsets")?, source.array("tokens")?);
    check_lengths(&offsets, &tokens)?;
    let mut leaves = Leaves::new(
        source.array("leaves")?,
        source.array("item_offsets")?,
        source.array("items")?,
    );
    if source.tensors.names().contains(&"items_by_id") {
        leaves = leaves.with_order(source.array("items_by_id")?);
    }
    leaves.check_lengths()?;
    let max_token = match metadata.get("max_token") {
        Some(number) => (number.parse().ok().filter(|&token| token < u32::MAX))
            .ok_or_else(|| malformed(format!("max_token is {number:?}, which is no token")))?,
        None => tokens.iter().copied().max().unwrap_or(0),
    };
    Ok(TokenTrie {
        sets: TokenSets::new(offsets, tokens, max_token, mapped.is_none()),
        leaves: Arc::new(leaves),
    })
}

/// The number types of the file's arrays, which are little-endian there.
trait Number: Pod {
    const DTYPE: Dtype;
    /// Swaps the bytes where the machine is big-endian.
    fn swapped(self) -> Self;
}

impl Number for u32 {
    const DTYPE: Dtype = Dtype::U32;
    fn swapped(self) -> Self {
        self.to_le()
    }
}

impl Number for u64 {
    const DTYPE: Dtype = Dtype::U64;
    fn swapped(self) -> Self {
        self.to_le()
    }
}

/// One of the file's arrays, to be written.
struct Stored<'a> {
    name: &'static str,
    dtype: Dtype,
    length: usize,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Stored<'a> {
    fn new<T: Number>(name: &'static str, values: &'a [T]) -> Self {
        let bytes = if cfg!(target_endian = "little") {
            Cow::Borrowed(cast_slice(values))
        } else {
            let swapped: Vec<T> = values.iter().map(|value| value.swapped()).collect();
            Cow::Owned(cast_slice(&swapped).to_vec())
        };
        Self {
            name,
            dtype: T::DTYPE,
            length: values.len(),
            bytes,
        }
    }
}

/// Returns the header of a safetensors file whose bytes depend on the trie alone. The format's own crate takes the metadata as a
/// hash map and writes them in its random order.
fn header(max_token: u32, arrays: &[Stored]) -> Vec<u8> {
    let mut header = format!(
        r#"{{"__metadata__":{{"format":"{FORMAT}","version":"{VERSION}","max_token":"{max_token}"}}"#
    );
    let mut begin = 0;
    for array in arrays {
        let Stored {
            name,
            dtype,
            length,
            bytes,
        } = array;
        let end = begin + bytes.len();
        header += &format!(
            r#","{name}":{{"dtype":"{dtype:?}","shape":[{length}],"data_offsets":[{begin},{end}]}}"#
        );
        begin = end;
    }
    header.push('}');
    // Spaces are allowed at its end: the arrays begin at a multiple of eight bytes.
    let padded = header.len().next_multiple_of(8);
    let length = (padded as u64).to_le_bytes();
    [&length, format!("{header:padded$}").as_bytes()].concat()
}

/// Writes a file atomically: an interrupted or failed write leaves what was there, and several at a time do not meet.
fn write(path: &Path, parts: &[Cow<[u8]>]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut prefix = path.file_name().unwrap_or_default().to_owned();
    prefix.push(".partial-");
    let mut beside = tempfile::Builder::new();
    beside.prefix(&prefix);
    // As of any new file; the crate's own default keeps temporary files from others.
    #[cfg(unix)]
    beside.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = BufWriter::new(beside.tempfile_in(folder)?);
    for part in parts {
        file.write_all(part)?;
    }
    let file = file.into_inner()?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// The arrays of a file, and where the file is mapped if it is.
struct Source<'a> {
    tensors: SafeTensors<'a>,
    mapped: Option<&'a Arc<Mmap>>,
}

impl Source<'_> {
    fn array<T: Number>(&self, name: &str) -> Result<Array<T>> {
        let tensor = self.tensors.tensor(name).map_err(unreadable)?;
        if tensor.dtype() != T::DTYPE || tensor.shape().len() != 1 {
            return Err(malformed(format!(
                "{name} must be one-dimensional {:?}, but is {:?} of shape {:?}",
                T::DTYPE,
                tensor.dtype(),
                tensor.shape()
            )));
        }
        let bytes = tensor.data();
        let Some(file) = self.mapped else {
            let mut values: Vec<T> = pod_collect_to_vec(bytes);
            values.iter_mut().for_each(|value| *value = value.swapped());
            return Ok(values.into());
        };
        let begin = bytes.as_ptr().addr() - file.as_ptr().addr();
        let part = Mapped::new(file, begin..begin + bytes.len());
        part.map(Array::Mapped).ok_or_else(|| {
            malformed(format!(
                "{name} begins at byte {begin}, which is no multiple of {}: it can be loaded but not \
                 opened",
                align_of::<T>()
            ))
        })
    }
}

/// Returns the metadata, with a format and a version that this crate reads.
fn metadata(bytes: &[u8]) -> Result<HashMap<String, String>> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let entry = |key| metadata.get(key).map_or("", String::as_str);
    if entry("format") != FORMAT {
        return Err(malformed(format!(
            "its metadata names the format {:?}, not {FORMAT:?}",
            entry("format")
        )));
    }
    if entry("version") != VERSION {
        return Err(malformed(format!(
            "it has version {:?}, this crate reads version {VERSION:?}",
            entry("version")
        )));
    }
    Ok(metadata)
}

/// Checks that nodes are the edges plus the root, and that 32 bits number them.
fn check_lengths(offsets: &[u32], tokens: &[u32]) -> Result<()> {
    if tokens.is_empty() {
        return Err(malformed("it has no edge".into()));
    }
    if offsets.len() != tokens.len() + 2 {
        return Err(malformed(format!(
            "{} edges make {} nodes and need {} offsets, but there are {}",
            tokens.len(),
            tokens.len() + 1,
            tokens.len() + 2,
            offsets.len()
        )));
    }
    if tokens.len() >= u32::MAX as usize {
        return Err(malformed(format!("it has {} edges", tokens.len())));
    }
    Ok(())
}

/// Checks that every node is reached from the root by exactly one path, and that no walk can go round: nodes are the
/// edges plus the root, and a child comes after its parent.
fn check_nodes(offsets: &[u32], tokens: &[u32]) -> Result<()> {
    if tokens.contains(&u32::MAX) {
        return Err(malformed(format!("{} is no token", u32::MAX)));
    }
    crate::sets::check_offsets(WHAT, offsets, tokens.len())?;
    let backwards = (offsets.windows(2).enumerate())
        .find(|(node, pair)| pair[0] < pair[1] && (pair[0] as usize) < *node);
    match backwards {
        Some((node, pair)) => Err(malformed(format!(
            "node {node} has node {} for a child, which does not come after it",
            pair[0] + 1
        ))),
        None => Ok(()),
    }
}

pub(super) fn malformed(detail: String) -> Error {
    Error::Malformed { what: WHAT, detail }
}

fn unreadable(error: safetensors::SafeTensorError) -> Error {
    malformed(error.to_string())
}

pub(super) fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}

/// Adds the path of the file to what is wrong with it.
pub(super) fn named(path: &Path, error: Error) -> Error {
    match error {
        Error::Malformed { what, detail } => Error::MalformedFile {
            path: path.to_owned(),
            what,
            detail,
        },
        other => other,
    }
}
