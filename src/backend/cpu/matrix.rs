//! Matrices in memory and their products, which the crate gemm computes, as it does for candle.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::element::{Element, Real};
use super::vector;

/// The padding of a gathered row, in elements. With a stride that is a power of two, rows would map to the same few sets of the
/// cache, and packing them would cost a sixth of the GEMM (measured at H = 2,048).
const PADDING: usize = 16;

/// Returns the row stride of gathered rows of this width, in elements.
pub(crate) fn padded(width: usize) -> usize {
    width + PADDING
}

/// The tile that one thread computes at a time. gemm has its own parallelism, but for a GEMM with few rows it transposes the
/// head rows on one thread while the others wait (2.4 times as long for 28 rows × 707 tokens on two threads).
const TILE_COLUMNS: usize = 64;
const TILE_ROWS: usize = 144;

/// A strided matrix to read. Its strides are in elements.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, R> {
    pub values: &'a [R],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a, R: Real> Matrix<'a, R> {
    /// Makes a matrix of contiguous rows with row stride `stride`.
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

    /// Returns a range of its rows, which must be in bounds.
    fn rows(self, rows: Range<usize>) -> Self {
        Self {
            values: self
                .values
                .get(rows.start * self.row_stride..)
                .unwrap_or(&[]),
            rows: rows.len(),
            ..self
        }
    }

    fn fits(&self) -> bool {
        let last = (self.rows.max(1) - 1) * self.row_stride
            + (self.columns.max(1) - 1) * self.column_stride;
        self.rows == 0 || self.columns == 0 || last < self.values.len()
    }
}

/// A GEMM to compute: `result` (+)= `left · right`. The result is contiguous in row-major order.
pub(crate) struct Gemm<'a, R> {
    pub left: Matrix<'a, R>,
    pub right: Matrix<'a, R>,
    pub result: &'a mut [R],
}

/// The destination of a row of a GEMM's result, which is multiplied by `factor` and rounded.
pub(crate) struct ScaledRow<'a, T> {
    pub factor: f64,
    pub values: &'a mut [T],
}

/// A GEMM to compute, `left · right`, with the destination of each row of its result; `None` for a row that is dropped.
pub(crate) struct ScaledGemm<'a, T: Element> {
    pub left: Matrix<'a, T::Real>,
    pub right: Matrix<'a, T::Real>,
    pub rows: Vec<Option<ScaledRow<'a, T>>>,
}

/// A tile of a GEMM's result with its operands, which one thread computes.
struct Tile<'a, R> {
    left: Matrix<'a, R>,
    right: Matrix<'a, R>,
    result: *mut R,
    result_stride: usize,
}

// SAFETY: the pointer stands for a mutable borrow of the tile's elements for the tile's lifetime. Tiles do not overlap (see
// `Gemm::tiles`), and `R` is Send.
unsafe impl<R: Real> Send for Tile<'_, R> {}

/// Computes `result` (+)= `left · right` with all threads.
///
/// Writes nothing if the shapes do not fit together; callers make sure that they do.
pub(crate) fn multiply<R: Real>(left: Matrix<R>, right: Matrix<R>, result: &mut [R], add: bool) {
    multiply_all(
        [Gemm {
            left,
            right,
            result,
        }],
        add,
    );
}

/// Computes all of the GEMMs with all threads. Their tiles are scheduled together, so that threads do not idle between GEMMs.
pub(crate) fn multiply_all<'a, R: Real>(gemms: impl IntoIterator<Item = Gemm<'a, R>>, add: bool) {
    let tiles: Vec<Tile<R>> = gemms.into_iter().flat_map(Gemm::tiles).collect();
    (tiles.into_par_iter().with_max_len(1)).for_each(|tile| tile.multiply(add));
}

/// Computes all of the GEMMs with all threads, and writes their scaled results. Before it is scaled, at most one tile of a
/// result for each thread is in memory.
pub(crate) fn multiply_scaled<'a, T: Element>(gemms: impl IntoIterator<Item = ScaledGemm<'a, T>>) {
    let tiles: Vec<ScaledGemm<T>> = gemms.into_iter().flat_map(ScaledGemm::tiles).collect();
    (tiles.into_par_iter().with_max_len(1)).for_each(ScaledGemm::multiply);
}

impl<'a, T: Element> ScaledGemm<'a, T> {
    /// Cuts the GEMM into tiles whose results do not overlap. Returns none if the shapes do not fit together.
    fn tiles(mut self) -> Vec<Self> {
        let (rows, columns) = (self.left.rows, self.right.columns);
        let fit = self.left.columns == self.right.rows
            && self.rows.len() == rows
            && (self.rows.iter().flatten()).all(|row| row.values.len() == columns)
            && self.left.fits()
            && self.right.fits();
        debug_assert!(fit, "the shapes of a matrix product do not fit");
        let mut tiles = Vec::new();
        if !fit {
            return tiles;
        }
        let by_column = self.right.transposed();
        for rows in parts(rows, TILE_ROWS) {
            let mut targets: Vec<_> = self.rows.drain(..rows.len()).collect();
            let left = self.left.rows(rows);
            for part in parts(columns, TILE_COLUMNS) {
                let rows = targets
                    .iter_mut()
                    .map(|row| row.as_mut()?.split_off(part.len()));
                tiles.push(Self {
                    left,
                    rows: rows.collect(),
                    right: by_column.rows(part).transposed(),
                });
            }
        }
        tiles
    }

    fn multiply(self) {
        let columns = self.right.columns;
        let mut result = vec![T::Real::ZERO; self.left.rows * columns];
        let tile = Tile {
            left: self.left,
            right: self.right,
            result: result.as_mut_ptr(),
            result_stride: columns,
        };
        tile.multiply(false);
        for (result, row) in result.chunks(columns).zip(self.rows) {
            if let Some(row) = row {
                vector::scale_into(result, row.factor, row.values);
            }
        }
    }
}

impl<'a, T> ScaledRow<'a, T> {
    /// Splits off the first `length` elements.
    fn split_off(&mut self, length: usize) -> Option<Self> {
        let values = self.values.split_off_mut(..length)?;
        Some(Self {
            factor: self.factor,
            values,
        })
    }
}

impl<'a, R: Real> Gemm<'a, R> {
    /// Cuts the result into tiles that do not overlap. Returns none if the shapes do not fit together.
    fn tiles(self) -> Vec<Tile<'a, R>> {
        let (left, right) = (self.left, self.right);
        let (rows, columns) = (left.rows, right.columns);
        let fit = left.columns == right.rows
            && self.result.len() == rows * columns
            && left.fits()
            && right.fits();
        debug_assert!(fit, "the shapes of a matrix product do not fit");
        if !fit {
            return Vec::new();
        }
        let result = self.result.as_mut_ptr();
        let by_column = right.transposed();
        let pairs = parts(columns, TILE_COLUMNS)
            .flat_map(|columns| parts(rows, TILE_ROWS).map(move |rows| (rows, columns.clone())));
        pairs
            .map(|(rows, part)| Tile {
                result: result.wrapping_add(rows.start * columns + part.start),
                result_stride: columns,
                left: left.rows(rows),
                right: by_column.rows(part).transposed(),
            })
            .collect()
    }
}

/// Cuts `0..length` into parts of at most `longest`.
fn parts(length: usize, longest: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length)
        .step_by(longest)
        .map(move |start| start..(start + longest).min(length))
}

impl<R: Real> Tile<'_, R> {
    fn multiply(self, add: bool) {
        let (left, right) = (self.left, self.right);
        let old = if add { R::from_f64(1.0) } else { R::ZERO };
        // SAFETY: both functions `tiles` return tiles only for matrices that are inside their slices and whose shapes fit. The
        // tile is inside the result of its GEMM, because its rows and columns are, or it is a buffer of the same size for a
        // scaled GEMM. `R` is f32 or f64, which gemm supports.
        unsafe {
            gemm::gemm(
                left.rows,
                right.columns,
                left.columns,
                self.result,
                1,
                self.result_stride as isize,
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
                Parallelism::None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows, the length of the sums, and columns: nothing, less than a tile, a tile, and a little more.
    const SHAPES: [[usize; 3]; 8] = [
        [0, 3, 2],
        [1, 1, 1],
        [3, 0, 2],
        [5, 7, 0],
        [9, 33, 17],
        [TILE_ROWS, 4, TILE_COLUMNS],
        [TILE_ROWS + 1, 5, 2 * TILE_COLUMNS + 1],
        [2 * TILE_ROWS + 3, 2, TILE_COLUMNS - 1],
    ];

    /// Two matrices of small whole numbers, so that every sum is exact: `[rows, inner]`, and
    /// `[columns, inner]`.
    fn factors([rows, inner, columns]: [usize; 3]) -> [Vec<f64>; 2] {
        let stride = padded(inner);
        let numbers = |count: usize, modulus: usize| {
            (0..count)
                .map(move |i| (i % modulus) as f64 - 5.0)
                .collect()
        };
        [numbers(rows * stride, 11), numbers(columns * stride, 13)]
    }

    fn check([rows, inner, columns]: [usize; 3], [left, right]: &[Vec<f64>; 2], found: &[f64]) {
        let stride = padded(inner);
        for row in 0..rows {
            for column in 0..columns {
                let pairs = (0..inner).map(|i| left[row * stride + i] * right[column * stride + i]);
                assert_eq!(found[row * columns + column], 1.0 + pairs.sum::<f64>());
            }
        }
    }

    #[test]
    fn products_of_many_shapes_made_at_once_agree_with_the_definition() {
        let factors = SHAPES.map(factors);
        let mut results = SHAPES.map(|[rows, _, columns]| vec![1.0; rows * columns]);
        let gemms = SHAPES.iter().zip(&factors).zip(&mut results);
        let gemms = gemms.map(|((&[rows, inner, columns], [left, right]), result)| Gemm {
            left: Matrix::new(left, rows, inner, padded(inner)),
            right: Matrix::new(right, columns, inner, padded(inner)).transposed(),
            result,
        });
        multiply_all(gemms, true);
        for ((shape, factors), result) in SHAPES.into_iter().zip(&factors).zip(&results) {
            check(shape, factors, result);
        }
    }

    #[test]
    fn rows_of_scaled_products_agree_with_the_definition_and_those_that_go_nowhere_are_dropped() {
        let goes = |row: usize| row % 3 != 1;
        let factors = SHAPES.map(factors);
        let mut results = SHAPES.map(|[rows, _, columns]| vec![7.0; rows * columns]);
        let gemms = SHAPES.iter().zip(&factors).zip(&mut results);
        let gemms = gemms.map(|((&[rows, inner, columns], [left, right]), result)| {
            let mut rest = &mut result[..];
            let target = |row| {
                let values = rest.split_off_mut(..columns)?;
                let factor = row as f64;
                goes(row).then_some(ScaledRow { factor, values })
            };
            ScaledGemm {
                left: Matrix::new(left, rows, inner, padded(inner)),
                right: Matrix::new(right, columns, inner, padded(inner)).transposed(),
                rows: (0..rows).map(target).collect(),
            }
        });
        multiply_scaled(gemms);
        for ((&[rows, inner, columns], [left, right]), result) in
            SHAPES.iter().zip(&factors).zip(&results)
        {
            let (left, right) = (Matrix::new(left, rows, inner, padded(inner)), right);
            for (index, &found) in result.iter().enumerate() {
                let (row, column) = (index / columns, index % columns);
                let right = &right[column * padded(inner)..][..inner];
                let pairs = left.rows(row..row + 1).values.iter().zip(right);
                let product: f64 = pairs.map(|(a, b)| a * b).sum();
                let expected = if goes(row) { row as f64 * product } else { 7.0 };
                assert_eq!(
                    found, expected,
                    "{rows} × {inner} × {columns}, element {index}"
                );
            }
        }
    }

    #[test]
    fn products_of_a_transposed_left_matrix_agree_with_the_definition() {
        for shape @ [rows, inner, columns] in SHAPES {
            let factors @ [left, right] = &factors(shape);
            let stride = padded(inner);
            let turned: Vec<f64> = (0..inner * rows)
                .map(|i| left[i % rows * stride + i / rows])
                .collect();
            let left = Matrix::new(&turned, inner, rows, rows).transposed();
            let right = Matrix::new(right, columns, inner, stride).transposed();
            let mut result = vec![f64::NAN; rows * columns];
            multiply(left, right, &mut result, false);
            let result: Vec<f64> = result.iter().map(|value| value + 1.0).collect();
            check(shape, factors, &result);
        }
    }
}
