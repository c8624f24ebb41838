//! The conventions by which the losses of the rows become the loss of the batch.

/// The reduction of the rows' losses to the loss of the batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reduction {
    /// The loss is the mean over all labelled rows, the unary ones included: Σ w·loss / Σ w with row weights w.
    MeanOverLabelled,
    /// The loss is the mean over the branching rows only.
    MeanOverBranching,
    /// The loss is the sum divided by this number, which is positive. Losses of micro-batches of unequal size, each
    /// divided by the number of rows of all of them, add up to the mean over all.
    MeanOver(f64),
    /// The loss is the sum.
    Sum,
    /// The losses are not reduced: the loss has the leading dimensions of the logits, with 0 at ignored positions.
    None,
}

/// A convention for the loss of a batch: a reduction, and whether its result is multiplied by τ.
///
/// The published code (arXiv 2504.04178) has two conventions, which are the presets here. They take the mean over
/// different rows, and only one multiplies it by τ, which keeps the size of the gradient, p − \[v = y\], when τ changes.
/// [`MaskedSoftmaxLoss::new`](crate::MaskedSoftmaxLoss::new) chooses by the temperature: losses at a fixed and at an
/// adaptive temperature are not to be compared as numbers.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_trie::{Convention, MaskedSoftmaxLoss, Rows, TokenTrie};
///
/// let trie = TokenTrie::new([(0, [1, 2, 9]), (1, [1, 3, 9]), (2, [4, 2, 9])])?;
/// // Of three labelled rows two are branching: the first token may be 1 or 4, and the second 2 or 3.
/// let rows = Rows::from_shifted(&trie, &vec![vec![1, 3, 9]])?;
/// let logits = Tensor::zeros((1, 3, 10), DType::F64, &Device::Cpu)?; // a branching row has the loss ln 2
/// let tau = 3.0;
/// let loss = |convention| -> candle_trie::Result<f64> {
///     let loss = MaskedSoftmaxLoss::new(&trie, tau)?.with_convention(convention)?;
///     Ok(loss.evaluate(&logits, &rows)?.loss.to_scalar()?)
/// };
/// let row = 2f64.ln();
/// let fixed = (row + row + 0.0) / 3.0; // the mean over all labelled rows
/// let adaptive = tau * (row + row) / 2.0; // τ times the mean over the branching rows
/// assert!((loss(Convention::fixed())? - fixed).abs() < 1e-12);
/// assert!((loss(Convention::adaptive())? - adaptive).abs() < 1e-12);
/// # Ok::<(), candle_trie::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Convention {
    /// The reduction of the rows' losses. By default [`Reduction::MeanOverLabelled`] at a fixed temperature and
    /// [`Reduction::MeanOverBranching`] at an adaptive one.
    pub reduction: Reduction,
    /// Whether the result is multiplied by τ. By default it is at an adaptive temperature only.
    pub times_temperature: bool,
}

impl Convention {
    /// Returns the convention published for a fixed temperature: the mean over all labelled rows.
    pub fn fixed() -> Self {
        Self {
            reduction: Reduction::MeanOverLabelled,
            times_temperature: false,
        }
    }

    /// Returns the convention published for ATS: τ times the mean over the branching rows.
    pub fn adaptive() -> Self {
        Self {
            reduction: Reduction::MeanOverBranching,
            times_temperature: true,
        }
    }
}
