//! Matrices in memory and their product, which is gemm's, the crate that candle multiplies with.

use gemm::Parallelism;

use super::vector::Real;

/// What is added to the length of a gathered row: rows a power of two apart would fall into the same
/// few sets of the cache, and packing them costs a sixth of the product (measured at H = 2,048).
const PADDING: usize = 16;

/// How far apart gathered rows of this width are kept.
pub(crate) fn padded(width: usize) -> usize {
    width + PADDING
}

/// A matrix to read, its elements `row_stride` and `column_stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, R> {
    pub values: &'a [R],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a, R: Real> Matrix<'a, R> {
    /// Rows of contiguous elements, `stride` apart.
    pub fn new(values: &'a [R], rows: usize, columns: usize, stride: usize) -> Self {
        Self {
            values,
            rows,
            columns,
            row_stride: stride,
            column_stride: 1,
        }
    }

    pub fn transposed(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    fn fits(&self) -> bool {
        let last = (self.rows.max(1) - 1) * self.row_stride
            + (self.columns.max(1) - 1) * self.column_stride;
        self.rows == 0 || self.columns == 0 || last < self.values.len()
    }
}

/// `product` (+)= `left · right`, over all threads. `product` is contiguous in row-major order.
///
/// Nothing is written where the shapes do not fit together; callers make them fit.
pub(crate) fn multiply<R: Real>(left: Matrix<R>, right: Matrix<R>, product: &mut [R], add: bool) {
    let (rows, columns) = (left.rows, right.columns);
    let fit = left.columns == right.rows
        && product.len() == rows * columns
        && left.fits()
        && right.fits();
    debug_assert!(fit, "the shapes of a matrix product do not fit");
    if !fit {
        return;
    }
    let old = if add { R::from_f64(1.0) } else { R::ZERO };
    // SAFETY: `fit` holds: every element that gemm reads of `left` and `right` lies inside its slice
    // (`fits`), and `product` has `rows * columns` elements in row-major order, borrowed mutably and
    // so apart from both. `R` is f32 or f64, which gemm knows.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            left.columns,
            product.as_mut_ptr(),
            1,
            columns as isize,
            add,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            old,
            R::from_f64(1.0),
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_and_transposed_matrices_agree_with_the_definition() {
        for (rows, inner, columns) in [(0, 3, 2), (1, 1, 1), (3, 0, 2), (5, 7, 3), (9, 33, 17)] {
            let stride = padded(inner);
            let left: Vec<f64> = (0..rows * stride).map(|i| (i % 11) as f64 - 5.0).collect();
            let right: Vec<f64> = (0..columns * stride)
                .map(|i| (i % 7) as f64 - 3.0)
                .collect();
            let mut product = vec![1.0; rows * columns];
            let right_matrix = Matrix::new(&right, columns, inner, stride).transposed();
            let left_matrix = Matrix::new(&left, rows, inner, stride);
            multiply(left_matrix, right_matrix, &mut product, true);
            for row in 0..rows {
                for column in 0..columns {
                    let pairs =
                        (0..inner).map(|i| left[row * stride + i] * right[column * stride + i]);
                    assert_eq!(product[row * columns + column], 1.0 + pairs.sum::<f64>());
                }
            }
        }
    }
}
