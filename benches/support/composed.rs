//! The loss as a candle user would write it today, out of candle's own operations.

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::log_softmax;

use super::Shape;

/// A batch the way candle's operations want it.
pub struct Composed {
    /// `[N, V]`: which tokens are valid.
    mask: Tensor,
    /// `[N, 1]`.
    targets: Tensor,
    minus_infinity: Tensor,
}

impl Composed {
    pub fn new(shape: &Shape, vocabulary: usize, device: &Device) -> Result<Self> {
        let rows = shape.rows.as_slice();
        let mut mask = vec![0u8; rows.len() * vocabulary];
        for (row, mask) in rows.iter().zip(mask.chunks_mut(vocabulary)) {
            for token in shape.sets.get(row.set).iter().flat_map(|set| set.iter()) {
                mask[token as usize] = 1;
            }
        }
        let targets = rows.iter().map(|row| row.target).collect();
        Ok(Self {
            mask: Tensor::from_vec(mask, (rows.len(), vocabulary), device)?,
            targets: Tensor::from_vec(targets, (rows.len(), 1), device)?,
            minus_infinity: Tensor::new(f32::NEG_INFINITY, device)?
                .broadcast_as((rows.len(), vocabulary))?,
        })
    }

    /// The mean loss over all rows at τ = 1, differentiable in `hidden`.
    pub fn loss(&self, hidden: &Tensor, head: &Tensor) -> Result<Tensor> {
        let logits = hidden.matmul(&head.t()?)?;
        let masked = self.mask.where_cond(&logits, &self.minus_infinity)?;
        log_softmax(&masked, 1)?
            .gather(&self.targets, 1)?
            .neg()?
            .mean_all()
    }
}
