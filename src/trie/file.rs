//! A trie as one safetensors file, which is checked whole when it is read.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensors};

use super::{Leaves, TokenTrie};
use crate::sets::TokenSets;
use crate::{Error, Result};

const WHAT: &str = "trie file";
const FORMAT: &str = "candle-trie";
/// The version of the format. It is raised whenever an older reader would misread what a newer writer wrote.
const VERSION: &str = "1";

impl TokenTrie {
    /// Writes the trie to one safetensors file: `offsets`, `tokens`, `leaves`, `item_offsets` (u32)
    /// and `items` (u64), with the format and its version in the metadata.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let (offsets, tokens) = self.raw();
        let leaves = &self.leaves;
        // The widest first, so that each begins at a multiple of its own width.
        let arrays = [
            Array::new("items", Dtype::U64, &leaves.items, u64::to_le_bytes),
            Array::new("offsets", Dtype::U32, offsets, u32::to_le_bytes),
            Array::new("tokens", Dtype::U32, tokens, u32::to_le_bytes),
            Array::new("leaves", Dtype::U32, &leaves.nodes, u32::to_le_bytes),
            Array::new(
                "item_offsets",
                Dtype::U32,
                &leaves.offsets,
                u32::to_le_bytes,
            ),
        ];
        // An atomic write: an interrupted save leaves the file that was there.
        let mut aside = path.as_ref().as_os_str().to_owned();
        aside.push(".partial");
        write(aside.as_ref(), &arrays)
            .and_then(|()| std::fs::rename(&aside, path.as_ref()))
            .map_err(|source| io_error(path.as_ref(), source))
    }

    /// Reads a trie that [`save`](Self::save) wrote.
    ///
    /// Everything is checked first: a damaged or hostile file is an error, never a wrong trie, and
    /// nothing larger than the file itself is allocated for it.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read, and [`Error::MalformedFile`] where it is no trie.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| io_error(path, error))?;
        Self::from_bytes(&bytes).map_err(|error| match error {
            Error::Malformed { what, detail } => Error::MalformedFile {
                path: path.to_owned(),
                what,
                detail,
            },
            other => other,
        })
    }

    /// Reads a trie from the bytes of a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`Error::Malformed`] says what is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        check_metadata(bytes)?;
        let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
        let u32s = |name| read(&file, name, Dtype::U32, u32::from_le_bytes);
        let (offsets, tokens) = (u32s("offsets")?, u32s("tokens")?);
        check_nodes(&offsets, &tokens)?;
        let leaves = Leaves {
            nodes: u32s("leaves")?,
            offsets: u32s("item_offsets")?,
            items: read(&file, "items", Dtype::U64, u64::from_le_bytes)?,
        };
        check_leaves(&offsets, &leaves)?;
        Ok(Self {
            sets: TokenSets::from_raw(offsets, tokens)?,
            leaves: Arc::new(leaves),
        })
    }
}

/// One of the file's arrays.
struct Array {
    name: &'static str,
    dtype: Dtype,
    length: usize,
    bytes: Vec<u8>,
}

impl Array {
    fn new<T: Copy, const N: usize>(
        name: &'static str,
        dtype: Dtype,
        values: &[T],
        bytes: fn(T) -> [u8; N],
    ) -> Self {
        Self {
            name,
            dtype,
            length: values.len(),
            bytes: values.iter().flat_map(|&value| bytes(value)).collect(),
        }
    }
}

/// Writes a safetensors file whose bytes depend on the trie alone. The format's own crate takes the metadata as a hash map
/// and writes them in its random order.
fn write(path: &Path, arrays: &[Array]) -> io::Result<()> {
    let mut header = format!(r#"{{"__metadata__":{{"format":"{FORMAT}","version":"{VERSION}"}}"#);
    let mut begin = 0;
    for array in arrays {
        let Array {
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
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(padded as u64).to_le_bytes())?;
    write!(file, "{header:padded$}")?;
    for array in arrays {
        file.write_all(&array.bytes)?;
    }
    file.into_inner()?.sync_all()
}

fn read<T, const N: usize>(
    file: &SafeTensors,
    name: &'static str,
    dtype: Dtype,
    value: fn([u8; N]) -> T,
) -> Result<Vec<T>> {
    let tensor = file.tensor(name).map_err(unreadable)?;
    if tensor.dtype() != dtype || tensor.shape().len() != 1 {
        return Err(malformed(format!(
            "{name} must be one-dimensional {dtype:?}, but is {:?} of shape {:?}",
            tensor.dtype(),
            tensor.shape()
        )));
    }
    Ok(tensor
        .data()
        .as_chunks::<N>()
        .0
        .iter()
        .map(|&bytes| value(bytes))
        .collect())
}

fn check_metadata(bytes: &[u8]) -> Result<()> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
    let entry = |key| {
        let values = metadata.metadata().as_ref();
        values
            .and_then(|values| values.get(key))
            .map_or("", String::as_str)
    };
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
    Ok(())
}

/// Checks that every node is reached from the root by exactly one path, and that no walk can go round: nodes are the
/// edges plus the root, and a child comes after its parent.
fn check_nodes(offsets: &[u32], tokens: &[u32]) -> Result<()> {
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

fn check_leaves(offsets: &[u32], leaves: &Leaves) -> Result<()> {
    let childless = (offsets.windows(2).enumerate())
        .filter(|(_, pair)| pair[0] == pair[1])
        .map(|(node, _)| node as u32);
    if !childless.eq(leaves.nodes.iter().copied()) {
        return Err(malformed(
            "the listed leaves are not the nodes without children, in rising order".into(),
        ));
    }
    if leaves.offsets.len() != leaves.nodes.len() + 1 {
        return Err(malformed(format!(
            "{} leaves need {} item offsets, but there are {}",
            leaves.nodes.len(),
            leaves.nodes.len() + 1,
            leaves.offsets.len()
        )));
    }
    crate::sets::check_offsets(WHAT, &leaves.offsets, leaves.items.len())?;
    for (node, bounds) in leaves.nodes.iter().zip(leaves.offsets.windows(2)) {
        let items = &leaves.items[bounds[0] as usize..bounds[1] as usize];
        if items.is_empty() || !items.is_sorted() {
            return Err(malformed(format!(
                "leaf {node} must have at least one item, and its items in rising order"
            )));
        }
    }
    Ok(())
}

fn malformed(detail: String) -> Error {
    Error::Malformed { what: WHAT, detail }
}

fn unreadable(error: safetensors::SafeTensorError) -> Error {
    malformed(error.to_string())
}

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}
