//! A matrix product, which is not a kernel of ours: whatever runs a plan has one.

use crate::backend::launch::Element;

/// `result` `[rows, columns]` = `left` × `right`, in row-major order, accumulated and written in f32.
/// Strides are elements between the beginnings of two rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// The type of `left` and `right`.
    pub element: Element,
    /// Rows of the result.
    pub rows: u32,
    /// Columns of the result.
    pub columns: u32,
    /// What is summed over.
    pub inner: u32,
    /// The address of the left side: `[rows, inner]`, or its transpose.
    pub left: u64,
    /// Of the left side, as it lies in memory.
    pub left_stride: u64,
    /// Whether the left side lies as `[inner, rows]`.
    pub left_transposed: bool,
    /// The address of the right side: `[inner, columns]`, or its transpose.
    pub right: u64,
    /// Of the right side, as it lies in memory.
    pub right_stride: u64,
    /// Whether the right side lies as `[columns, inner]`.
    pub right_transposed: bool,
    /// The address of the result, f32.
    pub result: u64,
    /// Of the result.
    pub result_stride: u64,
    /// Whether the product is added to what the result holds.
    pub accumulates: bool,
}
