//! How the losses of the rows become the loss of the batch.

/// What becomes of the rows' losses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reduction {
    /// The mean over all labelled rows, the unary ones included: Σ w·loss / Σ w.
    MeanOverLabelled,
    /// The mean over the branching rows only.
    MeanOverBranching,
    /// The sum divided by this number: for micro-batches of unequal size, whose losses are to add up
    /// to the mean over all of them.
    MeanOver(f64),
    /// The sum.
    Sum,
    /// No reduction: the loss has the leading dimensions of the logits, with 0 at positions that do
    /// not count.
    None,
}

/// A reduction, and whether the result is multiplied by τ.
///
/// The published code has two conventions, which are the presets here (arXiv 2504.04178; the
/// multiplication by τ keeps the size of the gradient, p − \[v = y\], when τ changes).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Convention {
    /// What becomes of the rows' losses.
    pub reduction: Reduction,
    /// Whether the result is multiplied by τ.
    pub times_temperature: bool,
}

impl Convention {
    /// As published for a fixed temperature: the mean over all labelled rows.
    pub fn fixed() -> Self {
        Self {
            reduction: Reduction::MeanOverLabelled,
            times_temperature: false,
        }
    }

    /// As published for ATS: τ times the mean over the branching rows.
    pub fn adaptive() -> Self {
        Self {
            reduction: Reduction::MeanOverBranching,
            times_temperature: true,
        }
    }
}
