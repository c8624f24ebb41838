//! What all layers share in one forward pass.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::ops::{RotaryAngles, SeenTokens, causal_mask};

/// A forward pass over whole sequences.
pub struct Sequences {
    /// The angles by which queries and keys are rotated.
    pub angles: RotaryAngles,
    /// The causal mask `[tokens, past + tokens]`.
    pub mask: Tensor,
    /// The seed of each sequence's dropout. `None` means no dropout.
    pub dropout_seeds: Option<Arc<[u64]>>,
}

impl Sequences {
    /// Prepares a pass over `batch` sequences of `tokens` tokens, each behind `past` others. `frequencies` are those of
    /// the rotary embedding; `like` is a tensor of the model's type and device.
    pub fn new(
        (batch, past, tokens): (usize, usize, usize),
        dropout_seeds: Option<Arc<[u64]>>,
        frequencies: &[f64],
        like: &Tensor,
    ) -> Result<Self> {
        let first_positions = vec![past as u32; batch];
        Ok(Self {
            angles: RotaryAngles::new(&first_positions, tokens, frequencies, like)?,
            mask: causal_mask(past, tokens, like)?,
            dropout_seeds,
        })
    }
}

/// A decoding step: a forward pass over new tokens that see a cache.
pub struct Decoding {
    /// The angles by which queries and keys are rotated, one batch row for each new token.
    pub angles: RotaryAngles,
    /// What each new token sees in the cache.
    pub seen: SeenTokens,
}
