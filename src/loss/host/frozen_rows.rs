//! The gathered rows of a head that is not trained.

use super::{Element, Matrix};
use crate::loss::gathered::{DEFAULT_LIMIT, Gathered};
use crate::{Error, Result, TokenSets};

/// The gathered rows of a head that is not trained, for the largest token sets, which every batch uses again. This is for slices
/// what [`FrozenHead`](crate::FrozenHead) is for tensors.
///
/// A pass that uses them compares one element of every gathered row that it needs with the head of its input, and refuses a head that
/// differs.
///
/// ```
/// use candle_trie::host::{FrozenRows, LinearForward, LinearInput, Matrix};
/// use candle_trie::{MaskedSoftmaxLoss, Rows, TokenTrie};
///
/// let trie = TokenTrie::new((0..100).map(|item| (item, [item as u32, 100])))?;
/// let mut loss = MaskedSoftmaxLoss::new(&trie, 1.0)?;
/// let rows = Rows::from_shifted(&trie, &vec![vec![7, 100]])?;
/// let (hidden, head) = ([1f32; 2 * 4], [0f32; 101 * 4]);
///
/// let head = Matrix::new(&head, 101, 4)?;
/// let frozen = FrozenRows::new(head, &trie, FrozenRows::DEFAULT_LIMIT)?;
/// let input = LinearInput {
///     hidden: Matrix::new(&hidden, 2, 4)?,
///     head,
///     bias: &[],
///     frozen: Some(&frozen),
/// };
/// let forward = LinearForward::new(&mut loss, input, &rows, [true, false])?;
/// assert!((forward.loss()[0] - 0.5 * 100f64.ln()).abs() < 1e-6);
/// # Ok::<(), candle_trie::Error>(())
/// ```
#[derive(Debug)]
pub struct FrozenRows {
    pub(super) sets: TokenSets,
    pub(super) gathered: Gathered,
    /// The shape [V, H] of the head that they were gathered from.
    pub(super) head_shape: [usize; 2],
}

impl FrozenRows {
    /// The usual limit of the memory of the gathered rows, in bytes: 64 MiB.
    pub const DEFAULT_LIMIT: usize = DEFAULT_LIMIT;

    /// Gathers the rows of `head` `[V, H]` for the largest of the first 2²⁰ `sets` that have at least 32 tokens, within `limit` bytes. They
    /// are kept in f32, or in f64 for a head in f64. Smaller sets are read from the head.
    ///
    /// # Errors
    /// [`Error::TokenOutsideVocabulary`] where the head is too small for the tokens of the sets, and [`Error::Unsupported`] for one
    /// of width 0.
    pub fn new<T: Element>(
        head: Matrix<T>,
        sets: impl Into<TokenSets>,
        limit: usize,
    ) -> Result<Self> {
        let (sets, head_shape) = (sets.into(), [head.rows, head.width]);
        let token = sets.max_token();
        if token as usize >= head.rows {
            return Err(Error::TokenOutsideVocabulary {
                token,
                vocabulary: head.rows,
            });
        }
        if head.width == 0 {
            return Err(Error::Unsupported {
                what: "head",
                expected: "a width of at least 1".into(),
                actual: format!("shape {head_shape:?}"),
            });
        }
        let gathered = Gathered::new(head.into(), &sets, limit);
        Ok(Self {
            sets,
            gathered,
            head_shape,
        })
    }

    /// Returns the number of sets whose rows are gathered.
    #[must_use]
    pub fn gathered_sets(&self) -> usize {
        self.gathered.sets
    }
}
