//! Labels as a training loop has them.

use crate::error::check_numbered;
use crate::{Error, Result};

/// The label of an ignored position, PyTorch's `ignore_index`.
const IGNORED: i64 = -100;

/// A matrix of labels `[B, T]`, each a token or ignored.
///
/// Methods that take labels accept, by reference, any of these:
///
/// - a tensor `[T]` or `[B, T]` of i64, i32 or u32, from any device;
/// - vectors of labels, one for each batch row, of i64, i32, u32 or a smaller integer type. Rows that are shorter than the
///   longest are padded at their end with ignored positions, so that `T` is the length of the longest;
/// - `Labels`.
///
/// The labels −100 (PyTorch's `ignore_index`) and `u32::MAX` (candle's) are ignored.
///
/// ```
/// use candle_trie::{Labels, Rows, TokenTrie};
/// let trie = TokenTrie::new([(0, vec![5, 6, 9]), (1, vec![5, 9])])?;
/// let ragged: Vec<Vec<u32>> = vec![vec![5, 9], vec![5, 6, 9]];
/// let padded: Vec<Vec<i32>> = vec![vec![5, 9, -100], vec![5, 6, 9]];
/// let rows = Rows::from_shifted(&trie, &ragged)?;
/// assert_eq!(rows.positions(), 2 * 3);
/// assert_eq!(rows, Rows::from_shifted(&trie, &padded)?);
/// # Ok::<(), candle_trie::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    pub(super) length: usize,
    pub(super) tokens: Vec<Option<u32>>,
}

impl Labels {
    /// Makes labels of one batch row after another, each `length` labels long.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where `labels` does not divide into rows of that length, and
    /// [`Error::InvalidLabel`] for a label that is neither a token nor one of the ignored values −100 and
    /// `u32::MAX`.
    pub fn new(labels: &[i64], length: usize) -> Result<Self> {
        if !labels.is_empty() && (length == 0 || !labels.len().is_multiple_of(length)) {
            return Err(Error::LengthMismatch {
                what: "labels of the last batch row",
                expected: length,
                actual: labels.len().checked_rem(length).unwrap_or(labels.len()),
            });
        }
        let tokens = (labels.iter().enumerate())
            .map(|(index, &label)| {
                token(label).ok_or(Error::InvalidLabel {
                    batch_row: index / length,
                    position: index % length,
                    label,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { length, tokens })
    }

    /// Returns the same labels where they are predicted: each one position earlier. The first label of a
    /// batch row is predicted by nothing and drops out.
    #[must_use]
    pub fn shifted(mut self) -> Self {
        for line in self.tokens.chunks_mut(self.length.max(1)) {
            line.rotate_left(1);
            if let Some(last) = line.last_mut() {
                *last = None;
            }
        }
        self
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &[Option<u32>]> {
        self.tokens.chunks(self.length.max(1))
    }
}

/// Returns `Some(None)` for a label to ignore, and `None` for one that is invalid.
fn token(label: i64) -> Option<Option<u32>> {
    match u32::try_from(label) {
        Ok(u32::MAX) => Some(None),
        Ok(token) => Some(Some(token)),
        Err(_) => (label == IGNORED).then_some(None),
    }
}

impl<T: Copy + Into<i64>> TryFrom<&[Vec<T>]> for Labels {
    type Error = Error;

    fn try_from(lines: &[Vec<T>]) -> Result<Self> {
        let length = lines.iter().map(Vec::len).max().unwrap_or(0);
        // Before padding, which a single long line among many makes large.
        check_numbered("positions", length.saturating_mul(lines.len()))?;
        let padded: Vec<i64> = (lines.iter())
            .flat_map(|line| {
                let padding = std::iter::repeat_n(IGNORED, length - line.len());
                line.iter().map(|&label| label.into()).chain(padding)
            })
            .collect();
        Self::new(&padded, length)
    }
}

impl<T: Copy + Into<i64>> TryFrom<&Vec<Vec<T>>> for Labels {
    type Error = Error;

    fn try_from(lines: &Vec<Vec<T>>) -> Result<Self> {
        lines.as_slice().try_into()
    }
}

impl From<&Labels> for Labels {
    fn from(labels: &Labels) -> Self {
        labels.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_are_no_tokens_are_errors_and_both_idioms_of_ignore_are_not() {
        let error = Labels::new(&[5, -1], 2).unwrap_err();
        assert!(matches!(
            error,
            Error::InvalidLabel {
                position: 1,
                label: -1,
                ..
            }
        ));
        assert!(Labels::new(&[1 << 40], 1).is_err());
        let labels = Labels::new(&[-100, i64::from(u32::MAX), 5], 3).unwrap();
        assert_eq!(labels.tokens, [None, None, Some(5)]);
        assert!(Labels::new(&[1, 2, 3], 2).is_err());
        assert!(Labels::new(&[1], 0).is_err());
    }

    #[test]
    fn ragged_labels_are_padded_at_their_end() {
        let labels = Labels::try_from(&vec![vec![5u32], vec![], vec![5, 6]]).unwrap();
        let expected = [Some(5), None, None, None, Some(5), Some(6)];
        assert_eq!((labels.length, &labels.tokens[..]), (2, &expected[..]));
    }
}
