//! Matrix products, by gemm: the crate that candle multiplies with on the processor, which can also add to what is
//! there.

use gemm::Parallelism;

use super::elements::Element;

/// A matrix to read, its elements `row_stride` and `column_stride` apart.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Element> Matrix<'a, T> {
    /// As many rows of `columns` elements as there are.
    pub fn new(values: &'a [T], columns: usize) -> Self {
        Self::strided(values, values.len() / columns.max(1), columns, columns)
    }

    /// Rows that begin `stride` elements apart.
    pub fn strided(values: &'a [T], rows: usize, columns: usize, stride: usize) -> Self {
        Self {
            values,
            rows,
            columns,
            row_stride: stride,
            column_stride: 1,
        }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn fits(&self) -> bool {
        fits(
            self.values.len(),
            self.rows,
            self.columns,
            self.row_stride,
            self.column_stride,
        )
    }
}

fn fits(
    length: usize,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + (columns - 1) * column_stride < length
}

/// `product = kept · product + scale · left · right` on the calling thread. The rows of `product` begin `stride`
/// elements apart.
///
/// # Panics
/// Where the shapes do not fit together: callers make them fit.
pub fn multiply<T: Element>(
    product: &mut [T],
    stride: usize,
    kept: T,
    left: Matrix<T>,
    right: Matrix<T>,
    scale: T,
) {
    let (rows, columns) = (left.rows, right.columns);
    assert!(
        left.columns == right.rows
            && left.fits()
            && right.fits()
            && columns <= stride
            && fits(product.len(), rows, columns, stride, 1),
        "the shapes of a matrix product do not fit"
    );
    // SAFETY: every element that gemm reads of `left` and `right` lies inside its slice (`fits`), every element that
    // it writes inside `product`, which is borrowed mutably and so apart from both. `T` is f32 or f64, which gemm
    // knows.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            left.columns,
            product.as_mut_ptr(),
            1,
            stride as isize,
            kept != T::zero(),
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            kept,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_and_transposed_matrices_agree_with_the_definition() {
        for (rows, inner, columns) in [(0, 3, 2), (1, 1, 1), (3, 0, 2), (5, 7, 3), (9, 33, 17)] {
            let stride = inner + 2;
            let left: Vec<f64> = (0..rows * stride).map(|i| (i % 11) as f64 - 5.0).collect();
            let right: Vec<f64> = (0..columns * stride)
                .map(|i| (i % 7) as f64 - 3.0)
                .collect();
            let wide = columns + 1;
            let mut product = vec![2.0; rows * wide];
            multiply(
                &mut product,
                wide,
                3.0,
                Matrix::strided(&left, rows, inner, stride),
                Matrix::strided(&right, columns, inner, stride).t(),
                0.5,
            );
            for row in 0..rows {
                for column in 0..wide {
                    let sum: f64 = (0..inner)
                        .map(|i| {
                            left[row * stride + i] * right[column.min(columns - 1) * stride + i]
                        })
                        .sum();
                    let expected = if column < columns {
                        6.0 + 0.5 * sum
                    } else {
                        2.0
                    };
                    assert_eq!(product[row * wide + column], expected);
                }
            }
        }
    }
}
