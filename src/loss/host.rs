//! The loss over slices of host memory, for programs whose tensors are not candle's, such as bindings for other languages. No
//! tensor is copied.
//!
//! A forward pass is an object, which holds the loss and what is saved for the backward pass. The inputs are passed to both.
//!
//! ```
//! use candle_trie::host::{DenseForward, Matrix};
//! use candle_trie::{MaskedSoftmaxLoss, Rows, TokenTrie};
//!
//! let trie = TokenTrie::new([(0, [1, 9]), (1, [2, 9])])?;
//! let mut loss = MaskedSoftmaxLoss::new(&trie, 1.0)?;
//! let rows = Rows::from_shifted(&trie, &vec![vec![2, 9]])?;
//! let logits = [0f32; 2 * 10];
//! let logits = Matrix::new(&logits, 2, 10)?; // [N, V]
//!
//! let forward = DenseForward::new(&mut loss, logits, &rows)?;
//! assert_eq!(forward.loss(), [0.5 * 2f64.ln()]);
//! let mut gradient = [0f32; 2 * 10];
//! forward.backward(logits, &[1.0], &mut gradient)?;
//! assert_eq!(gradient[..3], [0.0, 0.25, -0.25]);
//! # Ok::<(), candle_trie::Error>(())
//! ```

mod dense;
mod frozen_rows;
mod linear;
mod matrix;

use super::call::Upstream;
use crate::backend::batch::Batch;
use crate::error::check_length;
use crate::{Error, Result};

pub use dense::DenseForward;
pub use frozen_rows::FrozenRows;
pub use linear::{LinearForward, LinearGradients, LinearInput};
pub use matrix::{Element, Matrix};

fn checked_upstream(batch: &Batch, upstream: &[f64]) -> Result<Upstream> {
    let expected = if batch.reduced { 1 } else { batch.positions };
    check_length("upstream gradient", upstream.len(), [expected, 1])?;
    Ok(Upstream::of(upstream.to_vec()))
}

fn check_positions(batch: &Batch, positions: usize, width: usize) -> Result<()> {
    match batch.positions == positions {
        true => Ok(()),
        false => Err(Error::PositionMismatch {
            rows: batch.positions,
            positions,
            shape: vec![positions, width],
        }),
    }
}

fn check_vocabulary(batch: &Batch, vocabulary: usize) -> Result<()> {
    let token = batch.sets.max_token();
    match (token as usize) < vocabulary {
        true => Ok(()),
        false => Err(Error::TokenOutsideVocabulary { token, vocabulary }),
    }
}
