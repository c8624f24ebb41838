//! Slices of the memory of tensors.

use candle_trie::host::Matrix;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::python_error;

/// A matrix in the memory of a tensor: its address, rows, width, and the elements between the beginnings of two rows.
#[derive(Clone, Copy, FromPyObject)]
pub struct RawMatrix(usize, usize, usize, usize);

impl RawMatrix {
    pub fn rows(self) -> usize {
        self.1
    }

    pub fn width(self) -> usize {
        self.2
    }

    #[cfg(feature = "cuda")]
    pub fn address(self) -> usize {
        self.0
    }

    #[cfg(feature = "cuda")]
    pub fn stride(self) -> usize {
        self.3
    }

    /// Returns the matrix.
    ///
    /// # Safety
    /// The address must be that of a tensor of this type with these rows, which nobody writes while the matrix is used.
    pub unsafe fn view<'a, T>(self) -> PyResult<Matrix<'a, T>> {
        let Self(address, rows, width, stride) = self;
        let elements = match rows == 0 || width == 0 {
            true => 0,
            false => (rows - 1) * stride + width,
        };
        // SAFETY: the caller's promise: the last row ends at this element.
        let values = unsafe { slice(address, elements) }?;
        Matrix::with_stride(values, rows, width, stride).map_err(python_error)
    }
}

/// Returns the elements at an address.
///
/// # Safety
/// There must be so many elements of this type, which nobody writes while the slice is used.
pub unsafe fn slice<'a, T>(address: usize, length: usize) -> PyResult<&'a [T]> {
    if length == 0 {
        return Ok(&[]);
    }
    check_address::<T>(address)?;
    // SAFETY: the caller's promise, and the address is neither null nor between two elements.
    Ok(unsafe { std::slice::from_raw_parts(address as *const T, length) })
}

/// Returns the elements at an address, to be written.
///
/// # Safety
/// There must be so many elements of this type, which nobody else reads or writes while the slice is used.
pub unsafe fn slice_mut<'a, T>(address: usize, length: usize) -> PyResult<&'a mut [T]> {
    if length == 0 {
        return Ok(&mut []);
    }
    check_address::<T>(address)?;
    // SAFETY: the caller's promise, and the address is neither null nor between two elements.
    Ok(unsafe { std::slice::from_raw_parts_mut(address as *mut T, length) })
}

/// Refuses an address that no slice may have. The package has refused such tensors in words.
fn check_address<T>(address: usize) -> PyResult<()> {
    match address != 0 && address.is_multiple_of(align_of::<T>()) {
        true => Ok(()),
        false => Err(PyValueError::new_err(format!(
            "a tensor has no memory, or memory that is not aligned: its address is {address:#x}"
        ))),
    }
}

/// A dtype of tensors that losses take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F64,
    F16,
    Bf16,
}

impl Dtype {
    /// Refuses tensors of another dtype than those of the forward pass.
    pub fn check(self, of_forward_pass: Self) -> PyResult<()> {
        match self == of_forward_pass {
            true => Ok(()),
            false => Err(PyValueError::new_err(format!(
                "the tensors of the backward pass are {self:?}, and those of the forward pass were {of_forward_pass:?}"
            ))),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Dtype {
    type Error = PyErr;

    fn extract(name: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let name: String = name.extract()?;
        match name.as_str() {
            "float32" => Ok(Self::F32),
            "float64" => Ok(Self::F64),
            "float16" => Ok(Self::F16),
            "bfloat16" => Ok(Self::Bf16),
            _ => Err(PyValueError::new_err(format!(
                "expected a tensor of dtype float32, float64, float16 or bfloat16, found {name}"
            ))),
        }
    }
}

/// Runs `$body` with `$T` bound to the element type of a [`Dtype`].
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::memory::Dtype::F32 => {
                type $T = f32;
                $body
            }
            $crate::memory::Dtype::F64 => {
                type $T = f64;
                $body
            }
            $crate::memory::Dtype::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::memory::Dtype::Bf16 => {
                type $T = half::bf16;
                $body
            }
        }
    };
}
pub(crate) use with_element;
