//! Matrices in host memory.

use half::{bf16, f16};

use crate::error::check_length;
use crate::{Error, Result};

/// A type of logits, hidden states and heads: f32, f64, [`half::f16`](struct@half::f16) or [`half::bf16`](struct@half::bf16).
pub trait Element: sealed::Element {}

mod sealed {
    pub trait Element: crate::loss::tensor::Scalar {}
}

macro_rules! elements {
    ($($T:ty),*) => { $(impl sealed::Element for $T {} impl Element for $T {})* };
}
elements!(f32, f64, f16, bf16);

/// A matrix in host memory: rows of `width` elements, `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    pub(super) values: &'a [T],
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Makes a matrix `[rows, width]` whose rows follow each other.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where there are fewer or more values.
    pub fn new(values: &'a [T], rows: usize, width: usize) -> Result<Self> {
        check_length("values of the matrix", values.len(), [rows, width])?;
        Self::with_stride(values, rows, width, width)
    }

    /// Makes a matrix `[rows, width]` whose rows begin `stride` elements apart.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where there are too few values for the last row.
    pub fn with_stride(values: &'a [T], rows: usize, width: usize, stride: usize) -> Result<Self> {
        let needed = match rows == 0 || width == 0 {
            true => 0,
            false => (rows - 1).saturating_mul(stride).saturating_add(width),
        };
        match values.len() >= needed {
            true => Ok(Self {
                values,
                rows,
                width,
                stride,
            }),
            false => Err(Error::LengthMismatch {
                what: "values of the matrix",
                expected: needed,
                actual: values.len(),
            }),
        }
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns a row, which is empty where there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [T] {
        let start = row.saturating_mul(self.stride);
        let range = start..start.saturating_add(self.width);
        (self.values.get(range))
            .filter(|_| row < self.rows)
            .unwrap_or_default()
    }
}

impl<'a, T> From<Matrix<'a, T>> for crate::loss::tensor::Matrix<'a, T> {
    fn from(matrix: Matrix<'a, T>) -> Self {
        Self {
            values: matrix.values,
            stride: matrix.stride,
            width: matrix.width,
        }
    }
}
