//! Rotary position embedding (the half-split form of Hugging Face's Llama): candle's own has no backward.

use std::{ops::Range, sync::Arc};

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{
    composed::{self, wide_dtype},
    elements::{Element, constant, elements, for_element_of},
    form::Form,
};

/// How far the tokens of one pass turn.
pub enum Turns {
    Fused(Arc<Angles>),
    /// Of all angles, `[batch or 1, tokens, 1, pairs]`.
    Composed {
        cosines: Tensor,
        sines: Tensor,
    },
}

impl Turns {
    /// Token `t` of batch row `b` stands at position `first_positions[b] + t`. Pair `i` of a head's elements turns by
    /// `frequencies[i]` radians from one position to the next. `like` is of the model's type and device.
    pub fn new(
        form: Form,
        first_positions: &[u32],
        tokens: usize,
        frequencies: &[f64],
        like: &Tensor,
    ) -> Result<Self> {
        if form == Form::Fused {
            let first = first_positions.iter().max();
            let last = first.map_or(0, |&first| first as usize + tokens);
            return Ok(Self::Fused(Arc::new(Angles {
                turns: turns(0..last, frequencies).collect(),
                pairs: frequencies.len(),
                first_positions: first_positions.to_vec(),
            })));
        }
        // Rows that stand at the same positions share their angles.
        let rows = match first_positions
            .iter()
            .all(|first| *first == first_positions[0])
        {
            true => &first_positions[..first_positions.len().min(1)],
            false => first_positions,
        };
        let (cosines, sines): (Vec<f64>, Vec<f64>) = rows
            .iter()
            .flat_map(|&first| turns(first as usize..first as usize + tokens, frequencies))
            .unzip();
        let table = |values| {
            Tensor::from_vec(
                values,
                (rows.len(), tokens, 1, frequencies.len()),
                &Device::Cpu,
            )?
            .to_dtype(wide_dtype(like.dtype()))?
            .to_device(like.device())
        };
        Ok(Self::Composed {
            cosines: table(cosines)?,
            sines: table(sines)?,
        })
    }

    /// Turns the tokens of a pass, `x [batch, tokens, heads, width]`.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Composed { cosines, sines } => composed::rotary::rotate(x, cosines, sines),
            Self::Fused(angles) => {
                angles.check(x)?;
                x.contiguous()?.apply_op1(Rotate {
                    angles: angles.clone(),
                    backwards: false,
                })
            }
        }
    }
}

pub struct Angles {
    /// Cosine and sine by position and pair.
    turns: Vec<(f64, f64)>,
    pairs: usize,
    first_positions: Vec<u32>,
}

impl Angles {
    fn check(&self, x: &Tensor) -> Result<()> {
        let (batch, _, _, width) = x.dims4()?;
        if (batch, width) != (self.first_positions.len(), 2 * self.pairs) {
            bail!(
                "the positions of {} rows and {} rotary frequencies for a batch of {batch} with heads of width {width}",
                self.first_positions.len(),
                self.pairs
            );
        }
        Ok(())
    }
}

/// Cosine and sine by position and pair.
fn turns(positions: Range<usize>, frequencies: &[f64]) -> impl Iterator<Item = (f64, f64)> + '_ {
    positions
        .flat_map(|position| {
            frequencies
                .iter()
                .map(move |frequency| position as f64 * frequency)
        })
        .map(|angle: f64| (angle.cos(), angle.sin()))
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
