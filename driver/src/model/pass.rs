//! What the layers must know of one pass through a model.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{composed::attention::causal_mask, form::Form, rotary::Turns};

/// One pass through a model.
pub struct Pass {
    pub form: Form,
    /// The seed of each sequence's dropout, in training; nothing drops out without it.
    pub seeds: Option<Arc<[u64]>>,
    /// How far queries and keys turn.
    pub turns: Turns,
    /// What each query sees, in the composed form: 0 or −∞, to be added to its scores.
    pub mask: Option<Tensor>,
}

impl Pass {
    /// Over `batch` sequences of `tokens` tokens, each behind `past` others. `like` is of the model's type and device.
    pub fn over_sequences(
        form: Form,
        (batch, past, tokens): (usize, usize, usize),
        seeds: Option<Arc<[u64]>>,
        frequencies: &[f64],
        like: &Tensor,
    ) -> Result<Self> {
        let first = vec![past as u32; batch];
        Ok(Self {
            form,
            seeds,
            turns: Turns::new(form, &first, tokens, frequencies, like)?,
            mask: match form {
                Form::Fused => None,
                Form::Composed => Some(causal_mask(past, tokens, like)?),
            },
        })
    }
}
