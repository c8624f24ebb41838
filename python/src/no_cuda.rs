//! CUDA tensors in a build without their kernels.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// Refuses a stream in words.
#[pyclass(frozen)]
pub struct CudaStream;

#[pymethods]
impl CudaStream {
    #[new]
    #[pyo3(signature = (*_arguments))]
    fn new(_arguments: &Bound<PyTuple>) -> PyResult<Self> {
        Err(PyRuntimeError::new_err(
            "this build of candle-trie has no kernels for CUDA tensors: move the tensors to the CPU, or build the package with \
             nvcc in PATH and the feature cuda (docs/pytorch.md)",
        ))
    }
}
