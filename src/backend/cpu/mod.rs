//! The CPU: parallel over rows, vectorised along them.

mod balance;
pub(crate) mod dense;
pub(crate) mod element;
pub(crate) mod linear;
mod matrix;
pub(crate) mod row_weights;
pub(crate) mod softmax;
mod vector;
