//! The head of a model, as losses and searches take it.

use anyhow::Result;
use candle_core::{D, Tensor};
use candle_trie::{FrozenHead, Head, TokenTrie};

use crate::ops;

/// The head of a model: one matrix, or the frozen rows of the model's own tokens and those of tokens that were added to
/// them. Its tensors share their memory with the model's, but for added rows in another type than the own ones.
#[derive(Clone, Debug)]
pub struct LmHead {
    /// `[own tokens, hidden]`.
    own: Tensor,
    /// `[added tokens, hidden]`, in the type of the own rows.
    added: Option<Tensor>,
    /// The own rows with those gathered that a trie needs, of a head that is one matrix.
    gathered: Option<FrozenHead>,
}

impl LmHead {
    /// Makes a head of the rows of the own tokens and of those added to them, in the own rows' type.
    pub fn new(own: &Tensor, added: Option<&Tensor>) -> Result<Self> {
        let added = added.map(|added| added.to_dtype(own.dtype())).transpose()?;
        Ok(Self {
            own: own.clone(),
            added,
            gathered: None,
        })
    }

    /// Tells whether some of its rows are trained.
    pub fn is_trained(&self) -> bool {
        self.added.as_ref().unwrap_or(&self.own).track_op()
    }

    /// Returns the same head without gradient, to be used again and again over a trie, whose rows are gathered where the
    /// head is one matrix.
    pub fn frozen(self, trie: &TokenTrie) -> Result<Self> {
        Ok(match self.added {
            None => Self {
                gathered: Some(FrozenHead::new(&self.own, trie)?),
                ..self
            },
            Some(added) => Self {
                own: self.own.detach(),
                added: Some(added.detach()),
                gathered: None,
            },
        })
    }

    /// Computes the logits `[.., vocabulary]` of hidden states `[.., hidden]`. Where rows are frozen, they get no gradient.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let own = ops::linear(hidden, &self.own, None)?;
        Ok(match &self.added {
            None => own,
            Some(added) => Tensor::cat(&[own, ops::linear(hidden, added, None)?], D::Minus1)?,
        })
    }
}

impl<'a> From<&'a LmHead> for Head<'a> {
    fn from(head: &'a LmHead) -> Self {
        match (&head.gathered, &head.added) {
            (Some(gathered), _) => gathered.into(),
            (None, Some(added)) => Head::with_added_rows(&head.own, added),
            (None, None) => (&head.own).into(),
        }
    }
}
