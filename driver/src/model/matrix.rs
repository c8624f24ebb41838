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

/// Fewer rows than this are projected the other way round.
const MANY_ROWS: usize = 128;

/// `output = kept · output + rows · weightᵀ`, for `rows [rows, in]`, `weight [out, in]` and `output [rows, out]`.
///
/// gemm first copies the left one of two such matrices into an order of its own. Copying a weight costs as much as a
/// product with some forty rows: few rows, as decoding has them, take that place themselves, and the product is then
/// turned.
///
/// # Panics
/// As [`multiply`].
pub fn project<T: Element>(output: &mut [T], kept: T, rows: Matrix<T>, weight: Matrix<T>) {
    let (count, out) = (rows.rows, weight.rows);
    if !(2..MANY_ROWS).contains(&count) {
        return multiply(output, out, kept, rows, weight.t(), T::one());
    }
    let mut turned = vec![T::zero(); count * out];
    multiply(&mut turned, count, T::zero(), weight, rows.t(), T::one());
    turn(output, kept, &turned, count);
}

/// `output = kept · output + turnedᵀ`, for `turned [out, count]`.
fn turn<T: Element>(output: &mut [T], kept: T, turned: &[T], count: usize) {
    // Of both matrices, as many rows as stay in the cache.
    const BLOCK: usize = 16;
    let out = turned.len() / count;
    for (first, turned) in (0..out).step_by(BLOCK).zip(turned.chunks(BLOCK * count)) {
        for (row, output) in output.chunks_mut(out).enumerate() {
            let output = output[first..].iter_mut();
            for (output, turned) in output.zip(turned[row..].iter().step_by(count)) {
                *output = match kept == T::zero() {
                    true => *turned,
                    false => kept * *output + *turned,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projections_of_any_number_of_rows_agree_with_the_definition() {
        for (count, inner, out) in [
            (1, 5, 3),
            (2, 33, 1),
            (2, 0, 4),
            (17, 33, 40),
            (MANY_ROWS - 1, 3, 16),
            (MANY_ROWS, 3, 17),
        ] {
            let rows: Vec<f64> = (0..count * inner).map(|i| (i % 11) as f64 - 5.0).collect();
            let weight: Vec<f64> = (0..out * inner).map(|i| (i % 7) as f64 - 3.0).collect();
            for kept in [0.0, 1.0, 3.0] {
                // What is not kept may be anything.
                let old = if kept == 0.0 { f64::NAN } else { 2.0 };
                let mut output = vec![old; count * out];
                project(
                    &mut output,
                    kept,
                    Matrix::strided(&rows, count, inner, inner),
                    Matrix::strided(&weight, out, inner, inner),
                );
                for (place, &found) in output.iter().enumerate() {
                    let (row, column) = (place / out, place % out);
                    let product = (rows[row * inner..][..inner].iter())
                        .zip(&weight[column * inner..][..inner])
                        .map(|(a, b)| a * b);
                    let kept = if kept == 0.0 { 0.0 } else { kept * old };
                    assert_eq!(found, kept + product.sum::<f64>());
                }
            }
        }
    }

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
