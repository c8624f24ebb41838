//! The trie over a catalogue, and token sets that come from no trie.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::python_error;
use crate::threads::on_threads;

/// See `candle_trie.TokenTrie`.
#[pyclass(frozen, subclass, module = "candle_trie._native")]
pub struct TokenTrie(pub candle_trie::TokenTrie);

#[pymethods]
impl TokenTrie {
    /// Builds a trie of token sequences. Without ids, the items are numbered from 0.
    #[new]
    #[pyo3(signature = (sequences, ids=None))]
    fn new(py: Python, sequences: Vec<Vec<u32>>, ids: Option<Vec<u64>>) -> PyResult<Self> {
        let ids = ids.unwrap_or_else(|| (0..sequences.len() as u64).collect());
        if ids.len() != sequences.len() {
            return Err(PyValueError::new_err(format!(
                "expected an id for each of the {} sequences, found {}",
                sequences.len(),
                ids.len()
            )));
        }
        let trie = on_threads(py, || {
            candle_trie::TokenTrie::new(ids.into_iter().zip(sequences))
        });
        trie.map(Self).map_err(python_error)
    }

    #[staticmethod]
    fn load(py: Python, path: PathBuf) -> PyResult<Self> {
        let trie = on_threads(py, || candle_trie::TokenTrie::load(path));
        trie.map(Self).map_err(python_error)
    }

    fn save(&self, py: Python, path: PathBuf) -> PyResult<()> {
        on_threads(py, || self.0.save(path)).map_err(python_error)
    }

    /// Returns the bytes of the file that `save` writes.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &on_threads(py, || self.0.to_bytes()))
    }

    #[staticmethod]
    fn from_bytes(py: Python, bytes: &[u8]) -> PyResult<Self> {
        let trie = on_threads(py, || candle_trie::TokenTrie::from_bytes(bytes));
        trie.map(Self).map_err(python_error)
    }

    /// Returns the tokens that may follow a prefix, and None where no item begins so.
    fn children(&self, prefix: Vec<i64>) -> Option<&[u32]> {
        walk(&self.0, &prefix).map(|node| self.0.children(node))
    }

    /// Returns the ids of the items that a sequence of tokens spells.
    fn items(&self, sequence: Vec<i64>) -> &[u64] {
        walk(&self.0, &sequence).map_or(&[], |node| self.0.items(node))
    }

    #[getter]
    fn item_count(&self) -> usize {
        self.0.item_count()
    }

    #[getter]
    fn leaf_count(&self) -> usize {
        self.0.leaf_count()
    }

    #[getter]
    fn node_count(&self) -> usize {
        self.0.node_count()
    }

    #[getter]
    fn branching_count(&self) -> usize {
        self.0.branching_count()
    }

    #[getter]
    fn max_token(&self) -> u32 {
        self.0.max_token()
    }
}

/// Walks along tokens as Python has them, of which some may be none, like -100.
pub fn walk(trie: &candle_trie::TokenTrie, prefix: &[i64]) -> Option<u32> {
    prefix.iter().try_fold(trie.root(), |node, &token| {
        trie.child(node, u32::try_from(token).ok()?)
    })
}

/// See `candle_trie.TokenSets`.
#[pyclass(frozen, module = "candle_trie._native")]
pub struct TokenSets(pub candle_trie::TokenSets);

#[pymethods]
impl TokenSets {
    /// Makes sets of offsets and tokens.
    #[new]
    fn new(offsets: Vec<u32>, tokens: Vec<u32>) -> PyResult<Self> {
        candle_trie::TokenSets::from_raw(offsets, tokens)
            .map(Self)
            .map_err(python_error)
    }

    fn __len__(&self) -> usize {
        self.0.count().unwrap_or_default()
    }

    #[getter]
    fn max_token(&self) -> u32 {
        self.0.max_token()
    }
}

/// The tokens that a softmax is restricted to: those that continue an item, those of sets, or a whole vocabulary of this size.
#[derive(FromPyObject)]
pub enum Sets<'py> {
    Trie(Bound<'py, TokenTrie>),
    Listed(Bound<'py, TokenSets>),
    Vocabulary(usize),
}

impl Sets<'_> {
    /// Returns the token sets of the library.
    pub fn token_sets(self) -> PyResult<candle_trie::TokenSets> {
        match self {
            Self::Trie(trie) => Ok(candle_trie::TokenSets::from(&trie.get().0)),
            Self::Listed(sets) => Ok(sets.get().0.clone()),
            Self::Vocabulary(size) => {
                candle_trie::TokenSets::whole_vocabulary(size).map_err(python_error)
            }
        }
    }
}
