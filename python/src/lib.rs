//! The native part of the Python package `candle-trie`: the library over the memory of PyTorch's tensors.
//!
//! Tensors come as addresses, with what is needed to read them. Only the Python code of the package calls these functions: it
//! has checked device, dtype and layout, and keeps the tensors alive until a call returns.

#[cfg_attr(not(feature = "cuda"), path = "no_cuda.rs")]
mod cuda;
mod decode;
mod frozen_head;
mod loss;
mod memory;
mod rows;
mod threads;
mod trie;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// Returns an error of the library as Python's: `OSError` for files, `RuntimeError` of CUDA, `ValueError` for the rest.
fn python_error(error: candle_trie::Error) -> PyErr {
    match error {
        candle_trie::Error::Io { .. } => PyOSError::new_err(error.to_string()),
        candle_trie::Error::Candle(candle_core::Error::Cuda(error)) => {
            PyRuntimeError::new_err(error.to_string())
        }
        _ => PyValueError::new_err(error.to_string()),
    }
}

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::cuda::CudaStream;
    /// The number of float64 of the statistics of rows.
    #[pymodule_export]
    const STATISTICS: usize = candle_trie::Statistics::LENGTH;
    #[cfg(feature = "cuda")]
    #[pymodule_export]
    use super::cuda::{CudaDense, CudaLinear};
    #[pymodule_export]
    use super::decode::{BeamSearch, allowed_tokens, exact_top_k, mask_scores};
    #[pymodule_export]
    use super::frozen_head::FrozenRows;
    #[pymodule_export]
    use super::loss::{DenseForward, LinearForward, Loss, merge_statistics};
    #[pymodule_export]
    use super::rows::Rows;
    #[pymodule_export]
    use super::trie::{TokenSets, TokenTrie};
}
