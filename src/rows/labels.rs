//! Labels as a training loop has them.

use crate::{Error, Result};

/// The label that means "this position does not count", as Hugging Face writes it.
const IGNORED: i64 = -100;

/// A matrix of labels `[batch, length]`, each a token or "ignore".
///
/// Made from a tensor (`[T]` or `[B, T]`; i64 with −100 to ignore, or u32 with `u32::MAX`), or from
/// vectors of responses, of which the shorter are padded with "ignore" up to the longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    pub(super) length: usize,
    pub(super) tokens: Vec<Option<u32>>,
}

impl Labels {
    /// Labels of one batch row after another, each row `length` long.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where `labels` does not divide into rows of that length, and
    /// [`Error::InvalidLabel`] for a label that is neither a token nor ignored: −100 and `u32::MAX`
    /// are.
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

    /// The same labels where they are predicted: each one position earlier. The first label of a
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

/// `Some(None)` for a label to ignore, `None` for one that is invalid.
fn token(label: i64) -> Option<Option<u32>> {
    match u32::try_from(label) {
        Ok(u32::MAX) => Some(None),
        Ok(token) => Some(Some(token)),
        Err(_) => (label == IGNORED).then_some(None),
    }
}

impl TryFrom<&[Vec<i64>]> for Labels {
    type Error = Error;

    fn try_from(lines: &[Vec<i64>]) -> Result<Self> {
        let length = lines.iter().map(Vec::len).max().unwrap_or(0);
        let padded: Vec<i64> = (lines.iter())
            .flat_map(|line| {
                let padding = std::iter::repeat_n(IGNORED, length - line.len());
                line.iter().copied().chain(padding)
            })
            .collect();
        Self::new(&padded, length)
    }
}

impl TryFrom<&Vec<Vec<i64>>> for Labels {
    type Error = Error;

    fn try_from(lines: &Vec<Vec<i64>>) -> Result<Self> {
        lines.as_slice().try_into()
    }
}
