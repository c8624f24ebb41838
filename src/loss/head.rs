//! The head of a language model.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use super::gathered::{self, Gathered};
use super::tensor::{check_loss_device, cpu, matrix, with_element};
use crate::{Error, Result, TokenSets};

pub(super) const HEAD: &str = "head";
pub(super) const BIAS: &str = "head bias";
const ADDED_ROWS: &str = "added head rows";
/// The number of hidden states below which [`Head::logits`] multiplies the head by the hidden states, instead of the hidden states by
/// the head.
const MANY_ROWS: usize = 128;

/// A head of a language model: a matrix `[V, H]` that hidden states are multiplied by, with an optional bias `[V]`.
///
/// It is made from a tensor or a variable (tracked, if its gradient is wanted) or from a [`FrozenHead`], and goes
/// together with hidden states into [`Scores`](crate::Scores). [`with_added_rows`](Self::with_added_rows) makes one whose rows are
/// frozen but for those of new tokens.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The rows of all tokens or, after `base`, those of the added tokens.
    pub(super) weight: &'a Tensor,
    /// The frozen rows of the tokens before the added ones; `None` for a head in one part.
    pub(super) base: Option<&'a Tensor>,
    pub(super) bias: Option<&'a Tensor>,
    pub(super) gathered: Option<&'a Arc<Gathered>>,
    /// The token sets whose rows `gathered` has.
    pub(super) gathered_sets: Option<&'a TokenSets>,
}

impl<'a> Head<'a> {
    /// Makes a head with a bias `[V]`.
    pub fn with_bias(weight: &'a Tensor, bias: &'a Tensor) -> Self {
        Self {
            bias: Some(bias),
            ..Self::from(weight)
        }
    }

    /// Makes a head of V + V′ tokens: token v below V has row v of `base` `[V, H]`, and token V + i has row i of `added` `[V′, H]`.
    ///
    /// It is for tokens that are added to a pretrained model. `base` is frozen and takes no gradient, even if it is tracked.
    /// The gradient of `added`, if that is tracked, is `[V′, H]`. Nothing of the size of `base` is computed or copied for it.
    /// Both parts must have the same dtype, device and width.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor, Var};
    /// use candle_trie::{Head, MaskedSoftmaxLoss, Rows, TokenTrie};
    ///
    /// // Tokens 0 to 9 are those of the pretrained model; 10, 11 and 12 are new.
    /// let base = Tensor::ones((10, 4), DType::F32, &Device::Cpu)?;
    /// let added = Var::zeros((3, 4), DType::F32, &Device::Cpu)?;
    ///
    /// let trie = TokenTrie::new([(0, [10, 9]), (1, [12, 9])])?;
    /// let mut loss = MaskedSoftmaxLoss::new(&trie, 1.0)?;
    /// let rows = Rows::from_shifted(&trie, &vec![vec![12, 9]])?;
    /// let hidden = Tensor::ones((1, 2, 4), DType::F32, &Device::Cpu)?;
    /// let output = loss.forward((&hidden, Head::with_added_rows(&base, &added)), &rows)?;
    ///
    /// let gradients = output.loss.backward()?;
    /// let gradient = gradients.get(&added).unwrap().to_vec2::<f32>()?;
    /// assert_eq!(gradient, [[0.25; 4], [0.0; 4], [-0.25; 4]]); // p = 1/2, and the mean is over two rows
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_added_rows(base: &'a Tensor, added: &'a Tensor) -> Self {
        Self {
            base: Some(base),
            ..Self::from(added)
        }
    }

    /// Returns the same head with its tensors replaced by others of the same values.
    pub(super) fn with<'b>(self, weight: &'b Tensor, bias: Option<&'b Tensor>) -> Head<'b>
    where
        'a: 'b,
    {
        Head {
            weight,
            bias,
            ..self
        }
    }

    /// Computes all logits `[rows, V]` of hidden states `[rows, H]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.check_parts()?;
        let logits = (self.parts())
            .map(|rows| multiply(hidden, rows))
            .collect::<Result<Vec<_>>>()?;
        let logits = Tensor::cat(&logits, 1)?;
        Ok(match self.bias {
            Some(bias) => logits.broadcast_add(bias)?,
            None => logits,
        })
    }

    /// Returns the rows and biases of these tokens alone, which must be ascending and in the vocabulary.
    pub(super) fn select(&self, tokens: &[u32]) -> Result<(Tensor, Option<Tensor>)> {
        self.check_parts()?;
        let device = self.weight.device();
        let first_added = self.base.map_or(Ok(0), rows)?;
        let (of_base, of_added) =
            tokens.split_at(tokens.partition_point(|&token| (token as usize) < first_added));
        let of_added: Vec<u32> = (of_added.iter())
            .map(|&token| token - first_added as u32)
            .collect();
        let select =
            |rows: &Tensor, index: &[u32]| rows.index_select(&Tensor::new(index, device)?, 0);
        let selected = match (self.base, of_base) {
            (Some(base), [_, ..]) if of_added.is_empty() => select(base, of_base)?,
            (Some(base), [_, ..]) => {
                let parts = [select(base, of_base)?, select(self.weight, &of_added)?];
                Tensor::cat(&parts, 0)?
            }
            _ => select(self.weight, &of_added)?,
        };
        let bias = self.bias.map(|bias| select(bias, tokens)).transpose()?;
        Ok((selected, bias))
    }

    /// Returns V, or V + V′ for a head in two parts.
    pub(super) fn vocabulary(&self) -> Result<usize> {
        self.parts().map(rows).sum()
    }

    /// Returns the parts of the head in the order of their tokens.
    fn parts(&self) -> impl Iterator<Item = &'a Tensor> {
        self.base.into_iter().chain([self.weight])
    }

    /// Refuses added rows that do not fit the rows before them.
    pub(super) fn check_parts(&self) -> Result<()> {
        let (added, Some(base)) = (self.weight, self.base) else {
            return Ok(());
        };
        let width = |part: &Tensor| part.dims().get(1).copied();
        rows(base)?;
        if added.rank() == 2
            && width(added) == width(base)
            && added.dtype() == base.dtype()
            && added.device().same_device(base.device())
        {
            return Ok(());
        }
        let describe = |part: &Tensor| {
            let location = part.device().location();
            format!(
                "{:?} of shape {:?} on {location:?}",
                part.dtype(),
                part.dims()
            )
        };
        Err(Error::Unsupported {
            what: ADDED_ROWS,
            expected: format!(
                "rows [V′, H] of the width, dtype and device of the head [V, H] that they are added to, which is {}",
                describe(base)
            ),
            actual: describe(added),
        })
    }
}

/// Computes the logits `[rows, V]` of hidden states `[rows, H]` and head rows `[V, H]`.
fn multiply(hidden: &Tensor, head: &Tensor) -> Result<Tensor> {
    // candle's GEMM on the CPU first packs one of its operands. Packing a head costs as much as a GEMM with about forty rows,
    // so with few rows the operands are swapped, and the hidden states are packed.
    Ok(match hidden.device() {
        Device::Cpu if hidden.dim(0)? < MANY_ROWS => {
            head.matmul(&hidden.t()?)?.t()?.contiguous()?
        }
        _ => hidden.matmul(&head.t()?)?,
    })
}

/// Returns the number of rows of a part of a head.
fn rows(part: &Tensor) -> Result<usize> {
    match part.dims() {
        &[rows, _] => Ok(rows),
        dims => Err(Error::Unsupported {
            what: HEAD,
            expected: "shape [V, H]".into(),
            actual: format!("{dims:?}"),
        }),
    }
}

impl<'a> From<&'a Tensor> for Head<'a> {
    fn from(weight: &'a Tensor) -> Self {
        Self {
            weight,
            base: None,
            bias: None,
            gathered: None,
            gathered_sets: None,
        }
    }
}

impl<'a> From<&'a Var> for Head<'a> {
    fn from(weight: &'a Var) -> Self {
        Self::from(weight.as_tensor())
    }
}

impl<'a> From<&'a FrozenHead> for Head<'a> {
    fn from(head: &'a FrozenHead) -> Self {
        Self {
            bias: head.bias.as_ref(),
            gathered: Some(&head.gathered),
            gathered_sets: Some(&head.sets),
            ..Self::from(&head.weight)
        }
    }
}

/// A head that is not trained. It keeps the gathered rows of the largest token sets, which every batch uses again, and
/// takes no gradient.
///
/// Make a new one when the head changes. On the CPU each use compares one element of every gathered row that it needs with the
/// current head, and refuses a head that differs, as any step of an optimizer makes it. A change that leaves all these elements
/// unchanged is not noticed, nor is any change on a GPU.
///
/// ```
/// use candle_core::{DType, Device, Tensor, Var};
/// use candle_trie::{FrozenHead, MaskedSoftmaxLoss, Rows, TokenTrie};
/// let trie = TokenTrie::new((0..100).map(|item| (item, [item as u32, 100])))?;
/// let head = Tensor::zeros((101, 8), DType::F32, &Device::Cpu)?;
/// let head = FrozenHead::new(&head, &trie)?;
/// assert_eq!(head.gathered_sets(), 1); // the root's
///
/// let mut loss = MaskedSoftmaxLoss::new(&trie, 1.0)?;
/// let rows = Rows::from_shifted(&trie, &vec![vec![7, 100]])?;
/// let hidden = Var::zeros((2, 8), DType::F32, &Device::Cpu)?; // of a model
/// let output = loss.forward((hidden.as_tensor(), &head), &rows)?;
/// let gradients = output.loss.backward()?;
/// assert!(gradients.get(&hidden).is_some());
/// # Ok::<(), candle_trie::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct FrozenHead {
    weight: Tensor,
    bias: Option<Tensor>,
    sets: TokenSets,
    gathered: Arc<Gathered>,
}

impl FrozenHead {
    /// The limit of the memory of the gathered rows in [`new`](Self::new), in bytes: 64 MiB.
    pub const DEFAULT_LIMIT: usize = gathered::DEFAULT_LIMIT;

    /// Gathers the rows of `head` `[V, H]` for the largest of the first 2²⁰ `sets` that have at least 32 tokens, within
    /// [`DEFAULT_LIMIT`](Self::DEFAULT_LIMIT) bytes. They are kept in f32, or in f64 for a head in f64. Smaller sets are read from the head.
    ///
    /// # Errors
    /// A head that is not two-dimensional, of a dtype, device or layout that is not supported, or
    /// too small for the tokens of `sets`.
    pub fn new(head: &Tensor, sets: impl Into<TokenSets>) -> Result<Self> {
        Self::with_limit(head, None, sets, Self::DEFAULT_LIMIT)
    }

    /// Gathers the rows like [`new`](Self::new), with an optional bias `[V]`, and within a given number of bytes.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), and for a bias that does not fit.
    pub fn with_limit(
        head: &Tensor,
        bias: Option<&Tensor>,
        sets: impl Into<TokenSets>,
        bytes: usize,
    ) -> Result<Self> {
        let sets = sets.into();
        let (weight, bias) = (head.detach(), bias.map(Tensor::detach));
        let head = Head {
            bias: bias.as_ref(),
            ..Head::from(&weight)
        };
        check_head(&head, &sets)?;
        let gathered = match weight.device() {
            Device::Cpu => gather_on_cpu(&weight, &sets, bytes)?,
            _ => Gathered::ON_DEVICE,
        };
        Ok(Self {
            weight,
            bias,
            sets,
            gathered: Arc::new(gathered),
        })
    }

    /// Returns the number of sets whose rows are gathered, which is 0 on a GPU.
    pub fn gathered_sets(&self) -> usize {
        self.gathered.sets
    }
}

fn gather_on_cpu(weight: &Tensor, sets: &TokenSets, bytes: usize) -> Result<Gathered> {
    with_element!(weight.dtype(), HEAD, T => {
        let (storage, layout) = weight.storage_and_layout();
        let values = <T as candle_core::WithDType>::cpu_storage_as_slice(cpu(HEAD, &storage)?)?;
        Ok(Gathered::new(matrix(HEAD, values, layout)?, sets, bytes))
    })
}

/// Refuses a head that does not fit its bias or the tokens of the sets.
pub(super) fn check_head(head: &Head, sets: &TokenSets) -> Result<()> {
    let weight = head.weight;
    check_loss_device(HEAD, weight)?;
    let vocabulary = head.vocabulary()?;
    let token = sets.max_token();
    if token as usize >= vocabulary {
        return Err(Error::TokenOutsideVocabulary { token, vocabulary });
    }
    let Some(bias) = head.bias else { return Ok(()) };
    check_loss_device(BIAS, bias)?;
    if bias.dims() == [vocabulary] && bias.dtype() == weight.dtype() && bias.is_contiguous() {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: BIAS,
        expected: format!("contiguous {:?} of shape [{vocabulary}]", weight.dtype()),
        actual: format!(
            "{:?} of shape {:?} with strides {:?}",
            bias.dtype(),
            bias.dims(),
            bias.stride()
        ),
    })
}

/// Refuses a head of another dtype than the hidden states.
pub(super) fn check_dtype(hidden: &Tensor, weight: &Tensor) -> Result<()> {
    if hidden.dtype() == weight.dtype() {
        return with_element!(hidden.dtype(), "hidden states", _T => Ok(()));
    }
    Err(Error::Unsupported {
        what: HEAD,
        expected: format!("{:?}, as the hidden states", hidden.dtype()),
        actual: format!("{:?}", weight.dtype()),
    })
}
