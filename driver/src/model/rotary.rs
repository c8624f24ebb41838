//! Rotary position embedding (the half-split form of Hugging Face's Llama): candle's own has no backward.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::elements::{Element, constant, elements, for_element_of};

/// Rotates `x [batch, tokens, heads, width]`; token `t` of batch row `b` stands at position `first_positions[b] + t`.
/// Pair `i` of a head's elements turns by `frequencies[i]` radians from one position to the next.
pub fn rotate(x: &Tensor, first_positions: &[u32], frequencies: &[f64]) -> Result<Tensor> {
    let (batch, tokens, _, width) = x.dims4()?;
    if first_positions.len() != batch {
        bail!(
            "{} first positions for a batch of {batch}",
            first_positions.len()
        );
    }
    if 2 * frequencies.len() != width {
        bail!(
            "{} rotary frequencies for heads of width {width}",
            frequencies.len()
        );
    }
    let last = first_positions
        .iter()
        .max()
        .map_or(0, |&first| first as usize + tokens);
    let angles = Angles {
        turns: turns(last, frequencies),
        first_positions: first_positions.to_vec(),
    };
    x.contiguous()?.apply_op1(Rotate {
        angles: Arc::new(angles),
        backwards: false,
    })
}

struct Angles {
    /// Cosine and sine by position and pair.
    turns: Vec<(f64, f64)>,
    first_positions: Vec<u32>,
}

fn turns(positions: usize, frequencies: &[f64]) -> Vec<(f64, f64)> {
    (0..positions)
        .flat_map(|position| {
            frequencies
                .iter()
                .map(move |frequency| position as f64 * frequency)
        })
        .map(|angle| (angle.cos(), angle.sin()))
        .collect()
}

struct Rotate {
    angles: Arc<Angles>,
    /// The gradient of a rotation is the rotation back.
    backwards: bool,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_element_of!(x, T => {
            let output = self.rotated::<T>(elements(x, layout)?, layout.shape())?;
            Ok((candle_core::WithDType::to_cpu_storage_owned(output), layout.shape().clone()))
        })
    }

    fn bwd(&self, _x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let back = Rotate {
            angles: self.angles.clone(),
            backwards: !self.backwards,
        };
        gradient.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}

impl Rotate {
    fn rotated<T: Element>(&self, x: &[T], shape: &Shape) -> Result<Vec<T>> {
        let (_, tokens, heads, width) = shape.dims4()?;
        let pairs = width / 2;
        let sign = if self.backwards { -1.0 } else { 1.0 };
        let mut output = vec![T::zero(); x.len()];
        let places = output
            .par_chunks_mut(heads * width)
            .zip(x.par_chunks(heads * width))
            .enumerate();
        places.with_min_len(32).for_each(|(place, (output, x))| {
            let position = self.angles.first_positions[place / tokens] as usize + place % tokens;
            let turns = &self.angles.turns[position * pairs..][..pairs];
            for (output, x) in output.chunks_mut(width).zip(x.chunks(width)) {
                for (pair, &(cosine, sine)) in turns.iter().enumerate() {
                    let (cosine, sine) = (constant::<T>(cosine), constant::<T>(sign * sine));
                    output[pair] = x[pair] * cosine - x[pair + pairs] * sine;
                    output[pair + pairs] = x[pair + pairs] * cosine + x[pair] * sine;
                }
            }
        });
        Ok(output)
    }
}
