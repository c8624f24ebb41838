//! The scores that losses and searches are computed from: logits, or hidden states and a head.

use candle_core::{Tensor, Var};

use super::device_sets::DeviceSetCache;
use super::head::Head;
use super::temperature::{Stepped, TemperatureSource};
use super::{LossOutput, dense, linear};
use crate::backend::batch::Batch;
use crate::{Error, Result, Statistics};

/// The scores of all tokens at every position, given as logits, or as the hidden states and the head that they are computed
/// from.
///
/// Methods that take scores accept any of these:
///
/// - `&logits`, a tensor `[.., V]`;
/// - `(&hidden, &head)`, hidden states `[.., H]` and anything that a [`Head`] is made from: a tensor `[V, H]`,
///   a [`FrozenHead`](crate::FrozenHead), a head with a bias, or one with added rows. The logits are then never
///   materialised: only the head rows of valid tokens are read. The scores of the valid tokens, 4 bytes each (8 in f64), are in memory
///   together for token sets that are listed, and in chunks over the whole vocabulary. So sets as large as a vocabulary save nothing.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_trie::{MaskedSoftmaxLoss, Rows, TokenTrie};
///
/// let trie = TokenTrie::new([(0, [1, 9]), (1, [2, 9])])?;
/// let loss = MaskedSoftmaxLoss::new(&trie, 1.0)?;
/// let rows = Rows::from_shifted(&trie, &vec![vec![2, 9]])?;
/// let hidden = Tensor::ones((1, 2, 4), DType::F32, &Device::Cpu)?; // [B, T, H]
/// let head = Tensor::ones((10, 4), DType::F32, &Device::Cpu)?; // [V, H]
/// let logits = hidden.broadcast_matmul(&head.t()?)?; // [B, T, V]
///
/// let from_logits = loss.evaluate(&logits, &rows)?;
/// let from_hidden = loss.evaluate((&hidden, &head), &rows)?;
/// assert_eq!(from_logits.loss.to_scalar::<f32>()?, from_hidden.loss.to_scalar::<f32>()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub enum Scores<'a> {
    /// Logits `[.., V]`.
    Logits(&'a Tensor),
    /// Hidden states `[.., H]` and the head that multiplies them.
    Hidden(&'a Tensor, Head<'a>),
}

impl Scores<'_> {
    /// Returns the tensor whose leading dimensions are the positions, and whose gradient is computed.
    pub(crate) fn tensor(&self) -> &Tensor {
        match self {
            Self::Logits(tensor) | Self::Hidden(tensor, _) => tensor,
        }
    }

    /// Returns the loss of a batch, and the temperature if it took a step.
    pub(super) fn loss(
        self,
        batch: Batch,
        source: TemperatureSource,
        device_sets: &DeviceSetCache,
    ) -> Result<(LossOutput, Option<Stepped>)> {
        match self {
            Scores::Logits(logits) => dense::forward(logits, batch, source, device_sets),
            Scores::Hidden(hidden, head) => {
                linear::forward(hidden, head, batch, source, device_sets)
            }
        }
    }

    /// Returns the statistics of a batch.
    pub(super) fn statistics(
        self,
        batch: Batch,
        device_sets: &DeviceSetCache,
    ) -> Result<Statistics> {
        match self {
            Scores::Logits(logits) => dense::statistics(logits, batch, device_sets),
            Scores::Hidden(hidden, head) => linear::statistics(hidden, head, batch, device_sets),
        }
    }

    /// Returns the loss of a batch, the gradient of the scores' [`tensor`](Self::tensor), and the temperature if it took a
    /// step.
    pub(super) fn loss_and_gradient(
        self,
        batch: Batch,
        source: TemperatureSource,
        device_sets: &DeviceSetCache,
        target: GradientTarget,
    ) -> Result<(LossOutput, Tensor, Option<Stepped>)> {
        match (self, target) {
            (Scores::Logits(logits), GradientTarget::New) => {
                dense::value_and_gradient(logits, batch, source, device_sets)
            }
            (Scores::Logits(logits), GradientTarget::Into(gradient)) => {
                let (output, stepped) =
                    dense::value_and_gradient_into(logits, batch, source, device_sets, gradient)?;
                Ok((output, gradient.clone(), stepped))
            }
            (Scores::Logits(logits), GradientTarget::InPlace) => {
                let (output, stepped) =
                    dense::value_and_gradient_over(logits, batch, source, device_sets)?;
                Ok((output, logits.clone(), stepped))
            }
            (Scores::Hidden(hidden, head), GradientTarget::New) => {
                linear::value_and_gradient(hidden, head, batch, source, device_sets)
            }
            (Scores::Hidden(..), GradientTarget::Into(_) | GradientTarget::InPlace) => {
                Err(Error::Unsupported {
                    what: "target of the gradient of hidden states",
                    expected: "GradientTarget::New".into(),
                    actual: format!("{target:?}"),
                })
            }
        }
    }

    /// Calls `compute` with the same scores, detached from autograd.
    pub(super) fn detached<R>(self, compute: impl FnOnce(Scores) -> R) -> R {
        match self {
            Self::Logits(logits) => compute(Scores::Logits(&logits.detach())),
            Self::Hidden(hidden, head) => {
                let (weight, bias) = (head.weight.detach(), head.bias.map(Tensor::detach));
                let head = head.with(&weight, bias.as_ref());
                compute(Scores::Hidden(&hidden.detach(), head))
            }
        }
    }
}

impl<'a> From<&'a Tensor> for Scores<'a> {
    fn from(logits: &'a Tensor) -> Self {
        Self::Logits(logits)
    }
}

impl<'a> From<&'a Var> for Scores<'a> {
    fn from(logits: &'a Var) -> Self {
        Self::Logits(logits)
    }
}

impl<'a, H: Into<Head<'a>>> From<(&'a Tensor, H)> for Scores<'a> {
    fn from((hidden, head): (&'a Tensor, H)) -> Self {
        Self::Hidden(hidden, head.into())
    }
}

impl<'a, H: Into<Head<'a>>> From<(&'a Var, H)> for Scores<'a> {
    fn from((hidden, head): (&'a Var, H)) -> Self {
        Self::Hidden(hidden, head.into())
    }
}

/// The memory that [`value_and_gradient`](crate::MaskedSoftmaxLoss::value_and_gradient) writes the gradient to.
#[derive(Debug, Clone, Copy, Default)]
pub enum GradientTarget<'a> {
    /// The gradient is a new tensor. For hidden states this is the only choice.
    #[default]
    New,
    /// The gradient overwrites this contiguous tensor, which has the shape and dtype of the logits, and can be kept from
    /// step to step. It must not share its memory with the logits.
    Into(&'a Tensor),
    /// The gradient overwrites the logits. Nothing else may need them any more: an operation that keeps its
    /// result for its own backward pass would read the gradient instead. On CUDA this saves the memory of a second
    /// `[N, V]`.
    InPlace,
}
