//! A trie whose arrays stay in its file.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::TokenTrie;
use super::file::{io_error, named, read};
use crate::Result;

impl TokenTrie {
    /// Opens a trie that [`save`](Self::save) wrote, without reading it whole: the file is mapped into memory, and the system
    /// reads the parts that are used. Opening takes milliseconds for any catalogue, and processes that open the same file
    /// share its memory.
    ///
    /// Only the header and the lengths of the arrays are checked. [`load`](Self::load) checks everything, and
    /// [`verify`](Self::verify) does the same for a trie that is open. Without it a damaged file may give wrong results, but
    /// no undefined behaviour, panic or endless loop: each set of tokens is checked when it is looked at, and one that is
    /// damaged is empty. Before the sets are copied to a GPU they are all checked, and a damaged one is an error.
    ///
    /// The trie is as large in memory as the parts of the file that were used lately. Dropping the last clone unmaps the file.
    /// [`save`](Self::save) replaces files atomically, so a trie that is open keeps the file that it was opened from.
    ///
    /// Files of earlier versions lack the largest token and the order of the ids. The first is then computed here, which reads
    /// the tokens, and the second when [`leaves_of`](Self::leaves_of) or an exclusion of items first needs it. On big-endian
    /// machines this is [`load`](Self::load).
    ///
    /// ```
    /// use candle_trie::TokenTrie;
    /// let trie = TokenTrie::new([(10, [1, 9]), (11, [2, 9])])?;
    /// let folder = std::env::temp_dir().join(format!("candle-trie-{}", std::process::id()));
    /// std::fs::create_dir_all(&folder)?;
    /// let path = folder.join("trie.safetensors");
    /// trie.save(&path)?;
    /// // SAFETY: nobody changes the file while it is open.
    /// let opened = unsafe { TokenTrie::open(&path) }?;
    /// assert_eq!(opened.walk(&[2, 9]), trie.walk(&[2, 9]));
    /// opened.verify()?;
    /// # drop(opened);
    /// # std::fs::remove_dir_all(folder)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    /// As with every mapped file, no process may write to the file or truncate it while this trie or a clone of it lives. Rust
    /// may rely on its contents staying the same, and the system ends a process that reads beyond a truncated end (SIGBUS).
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) where the file cannot be mapped, and
    /// [`Error::MalformedFile`](crate::Error::MalformedFile) where its header or the lengths of its arrays are no trie's.
    pub unsafe fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if cfg!(target_endian = "big") {
            return Self::load(path);
        }
        let file = File::open(path).map_err(|error| io_error(path, error))?;
        // SAFETY: the caller promises that nobody changes the file.
        let mapped = unsafe { Mmap::map(&file) }.map_err(|error| io_error(path, error))?;
        let mapped = Arc::new(mapped);
        read(&mapped, Some(&mapped)).map_err(|error| named(path, error))
    }
}
