//! The gathered rows of a head that is not trained.

use candle_trie::host;
use pyo3::prelude::*;

use crate::memory::{Dtype, RawMatrix, with_element};
use crate::python_error;
use crate::threads::on_threads;
use crate::trie::Sets;

/// The gathered rows of a head.
#[pyclass(frozen)]
pub struct FrozenRows(pub host::FrozenRows);

#[pymethods]
impl FrozenRows {
    /// Gathers the rows of a head `[V, H]` for the largest token sets, within `limit` bytes.
    #[new]
    fn new(py: Python, dtype: Dtype, head: RawMatrix, sets: Sets, limit: usize) -> PyResult<Self> {
        let sets = sets.token_sets()?;
        with_element!(dtype, T => {
            // SAFETY: the package keeps the tensor alive, and does not write it.
            let head = unsafe { head.view::<T>() }?;
            on_threads(py, || host::FrozenRows::new(head, sets, limit))
        })
        .map(Self)
        .map_err(python_error)
    }

    /// The number of sets whose rows are gathered.
    #[getter]
    fn gathered_sets(&self) -> usize {
        self.0.gathered_sets()
    }
}
