//! Rotary position embedding.

use candle_core::{Device, Result, Tensor};
use candle_nn::rotary_emb::rope_thd;

use super::differentiable::{accumulator_dtype, differentiable, widen};

/// The angles by which the queries and keys of one forward pass are rotated: rotary position embedding, in the
/// half-split layout of Hugging Face's Llama.
pub struct RotaryAngles {
    /// Cosines `[tokens, pairs]`, or `[batch, tokens, pairs]` where the rows of the batch stand at different positions.
    cosines: Tensor,
    /// Sines, in the shape of the cosines.
    sines: Tensor,
    /// The negated sines, which rotate back: the gradient of a rotation.
    negated_sines: Tensor,
}

impl RotaryAngles {
    /// Computes the angles of `tokens` tokens in each batch row, the first of which stands at `first_positions[row]`.
    /// Pair `i` of a head's elements turns by `frequencies[i]` radians from one position to the next. `like` is a tensor
    /// of the model's type and device.
    pub fn new(
        first_positions: &[u32],
        tokens: usize,
        frequencies: &[f64],
        like: &Tensor,
    ) -> Result<Self> {
        // Rows that stand at the same positions share their angles.
        let shared = first_positions.windows(2).all(|pair| pair[0] == pair[1]);
        let rows = match shared {
            true => &first_positions[..first_positions.len().min(1)],
            false => first_positions,
        };
        let positions = (rows.iter()).flat_map(|&first| first as usize..first as usize + tokens);
        let angles = positions
            .flat_map(|position| frequencies.iter().map(move |step| position as f64 * step));
        let (sines, cosines): (Vec<f64>, Vec<f64>) = angles.map(f64::sin_cos).unzip();
        let table = |values| {
            let shape = (rows.len(), tokens, frequencies.len());
            let table = Tensor::from_vec(values, shape, &Device::Cpu)?
                .to_dtype(accumulator_dtype(like.dtype()))?
                .to_device(like.device())?;
            if shared { table.squeeze(0) } else { Ok(table) }
        };
        let sines = table(sines)?;
        Ok(Self {
            cosines: table(cosines)?,
            negated_sines: sines.neg()?,
            sines,
        })
    }

    /// Rotates the queries or keys `x [batch, tokens, heads, head width]`.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (cosines, negated_sines) = (self.cosines.clone(), self.negated_sines.clone());
        differentiable(
            [x],
            |[x]| rotate(x, &self.cosines, &self.sines),
            move |_, gradient, _| Ok([Some(rotate(gradient, &cosines, &negated_sines)?)]),
        )
    }
}

fn rotate(x: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    rope_thd(&widen(x)?.contiguous()?, cosines, sines)?.to_dtype(x.dtype())
}
