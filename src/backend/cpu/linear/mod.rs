//! The loss over hidden states `[N, H]` and a head `[V, H]`, without materialising the logits: only the head rows of
//! valid tokens are read.
//!
//! The rows of a batch are sorted into *slots*: first the rows of sets with enough work for a GEMM, set by set, and then the
//! others, which are *ragged*. The buffer of scores, which later holds the gradient of the logits, is in the order of the
//! slots. The forward pass saves this gradient, and the backward pass computes those of hidden states and head from it.

#[cfg(test)]
mod grouping;
mod head_gradient;
mod hidden_gradient;
mod plan;
mod scores;
mod whole_vocabulary;

use std::borrow::Cow;
use std::collections::HashMap;

pub(crate) use head_gradient::{HeadGradient, head_gradient};
pub(crate) use hidden_gradient::{hidden_gradient, write_hidden_gradient};
pub(crate) use plan::Plan;
pub(crate) use scores::{score, softmax};
pub(crate) use whole_vocabulary::{WholeVocabulary, whole_vocabulary_head_gradient};

use super::element::{Element, Real};
use super::matrix::{Matrix, padded};
use crate::backend::batch::{Batch, BatchRow};
use crate::{Error, Result};

/// The smallest number of rows that is worth a task of its own.
const ROWS_PER_TASK: usize = 8;

/// Hidden states `[N, H]` with row stride `stride`, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Hidden<'a, T> {
    pub values: &'a [T],
    pub stride: usize,
    pub width: usize,
}

/// A head `[V, H]`, with its bias.
pub(crate) struct Head<'a, T: Element> {
    /// The rows of all tokens or, after `base`, those of the added tokens.
    pub values: &'a [T],
    /// Row stride of `values`, in elements.
    pub stride: usize,
    pub width: usize,
    /// The frozen rows of the tokens before the added ones; `None` for a head in one part.
    pub base: Option<BaseRows<'a, T>>,
    /// The bias `[V]`; empty if the head has none.
    pub bias: &'a [T],
    /// The gathered rows of a frozen head by token set; `None` for a head that is not frozen.
    pub frozen: Option<&'a HashMap<u32, HeadRows<T::Real>>>,
}

/// The frozen rows `[rows, H]` of a head in two parts, with row stride `stride`, in elements.
pub(crate) struct BaseRows<'a, T> {
    pub values: &'a [T],
    pub stride: usize,
    pub rows: usize,
}

/// The head rows of one set, gathered and widened: `[tokens, H]` with row stride `padded(H)`.
#[derive(Debug, Clone)]
pub(crate) struct HeadRows<R> {
    pub values: Vec<R>,
}

/// What a forward pass saves for the gradients of a batch.
#[derive(Debug)]
pub(crate) enum SavedGradient<R> {
    /// Over listed sets, the gradient of the logits.
    Logits(LogitGradients<R>),
    /// Over the whole vocabulary, whose logits are not kept, the unscaled gradient Σ p_v W_v − W_y of the hidden state of every
    /// row `[rows, H]`. It is empty if it is not wanted.
    Hidden(Vec<R>),
}

/// The gradient of the logits of every slot, for an upstream gradient of 1.
#[derive(Debug)]
pub(crate) struct LogitGradients<R> {
    plan: Plan,
    /// p_v − \[v = y\] of every slot, in the layout of the scores. It is empty if no gradient is wanted.
    values: Vec<R>,
    /// The head rows of each group, which the forward pass gathered; `None` for a group whose rows are frozen. It is empty if
    /// the gradient of the hidden states is not wanted.
    head_rows: Vec<Option<HeadRows<R>>>,
}

/// The gradients that a forward pass prepares.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub hidden: bool,
    pub head: bool,
}

impl<R: Real> SavedGradient<R> {
    /// Refuses, before a backward pass, a head that has changed since its rows were gathered.
    pub fn check_frozen<T: Element<Real = R>>(&self, head: &Head<T>, batch: &Batch) -> Result<()> {
        match self {
            Self::Logits(dlogits) => head.check_frozen(batch, &dlogits.plan),
            Self::Hidden(_) => Ok(()),
        }
    }
}

impl<R: Real> HeadRows<R> {
    /// Returns the matrix `[tokens, H]` for H = `width`.
    fn matrix(&self, width: usize) -> Matrix<'_, R> {
        let stride = padded(width);
        Matrix::new(&self.values, self.values.len() / stride, width, stride)
    }
}

/// Gathers the hidden states at these positions, widened, with zeros for `None`: `[positions, H]` with row stride `padded(H)`.
fn gather_hidden<T: Element>(
    hidden: Hidden<T>,
    positions: impl ExactSizeIterator<Item = Option<u32>>,
) -> Vec<T::Real> {
    let stride = padded(hidden.width);
    let mut gathered = Vec::with_capacity(positions.len() * stride);
    for position in positions {
        let end = gathered.len() + stride;
        if let Some(position) = position {
            T::widen_into(hidden.row(position), &mut gathered);
        }
        gathered.resize(end, T::Real::ZERO);
    }
    gathered
}

/// Returns the position of a row for the gradient of the head, and `None` for a row without a loss, whose hidden state may be
/// NaN: NaN·0 is not 0.
fn loss_position(row: &BatchRow) -> Option<u32> {
    row.has_loss().then_some(row.position)
}

impl<'a, T> Hidden<'a, T> {
    fn row(&self, position: u32) -> &'a [T] {
        let start = position as usize * self.stride;
        &self.values[start..start + self.width]
    }
}

impl<'a, T: Element> Head<'a, T> {
    fn row(&self, token: u32) -> &'a [T] {
        &self.rows_from(token as usize).0[..self.width]
    }

    /// Returns the elements from a token's row to the end of its part, and their row stride.
    fn rows_from(&self, token: usize) -> (&'a [T], usize) {
        match &self.base {
            Some(base) if token < base.rows => (&base.values[token * base.stride..], base.stride),
            _ => {
                let row = token - self.first_trained();
                (&self.values[row * self.stride..], self.stride)
            }
        }
    }

    /// Returns the first token whose row may be trained. Those before it are in `base`.
    pub fn first_trained(&self) -> usize {
        self.base.as_ref().map_or(0, |base| base.rows)
    }

    fn bias(&self, token: u32) -> T::Real {
        self.bias
            .get(token as usize)
            .map_or(T::Real::ZERO, |bias| bias.widen())
    }

    /// Returns the size of one gathered row, in bytes.
    pub fn row_bytes(&self) -> usize {
        padded(self.width) * size_of::<T::Real>()
    }

    /// Returns the head rows of the tokens of a row's set, frozen or gathered.
    fn rows_of(&self, batch: &Batch, row: &BatchRow) -> Cow<'a, HeadRows<T::Real>> {
        match self.frozen.and_then(|frozen| frozen.get(&row.set)) {
            Some(rows) => Cow::Borrowed(rows),
            None => Cow::Owned(self.gather(batch.listed(row).iter().copied())),
        }
    }

    /// Refuses a head that has changed since the frozen rows of the plan's groups were gathered. Ragged rows read the head
    /// itself, so the loss would be a mixture of both versions. One element of each row is compared, whose cost is negligible
    /// beside that of the GEMM.
    fn check_frozen(&self, batch: &Batch, plan: &Plan) -> Result<()> {
        let Some(frozen) = self.frozen else {
            return Ok(());
        };
        let stride = padded(self.width);
        for group in &plan.groups {
            let row = plan.row(batch, group.start);
            let Some(rows) = frozen.get(&row.set) else {
                continue;
            };
            for (gathered, &token) in rows.values.chunks(stride).zip(batch.listed(row)) {
                // A hash of the token chooses the column, so that a change of few columns is found in some row.
                let fraction = u64::from(token.wrapping_mul(0x9e37_79b1));
                let column = ((fraction * self.width as u64) >> 32) as usize;
                let (was, is) = (gathered[column], self.row(token)[column].widen());
                let (was, is): (f64, f64) = (was.into(), is.into());
                if was != is && !(was.is_nan() && is.is_nan()) {
                    return Err(Error::Unsupported {
                        what: "head",
                        expected: format!(
                            "the head that was frozen, which has {was} for token {token} at column {column}"
                        ),
                        actual: format!("{is}: it has changed since, so make the frozen head anew"),
                    });
                }
            }
        }
        Ok(())
    }

    /// Gathers the head rows of `tokens`, widened.
    pub fn gather(&self, tokens: impl ExactSizeIterator<Item = u32>) -> HeadRows<T::Real> {
        let stride = padded(self.width);
        let mut values = Vec::with_capacity(tokens.len() * stride);
        for token in tokens {
            T::widen_into(self.row(token), &mut values);
            values.resize(values.len().next_multiple_of(stride), T::Real::ZERO);
        }
        HeadRows { values }
    }
}
