//! Rotary position embedding.

use candle_core::{Result, Tensor};

use super::{differentiable, wide};

/// Turns `x [batch, tokens, heads, width]` by angles of these cosines and sines `[batch or 1, tokens, 1, width / 2]`.
pub fn rotate(x: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let (cosines, sines) = (cosines.clone(), sines.clone());
    differentiable([x], |[x]| turned(x, &cosines, &sines), {
        let (cosines, back) = (cosines.clone(), sines.neg()?);
        move |_, gradient, _| Ok([Some(turned(gradient, &cosines, &back)?)])
    })
}

fn turned(x: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let pairs = x.dim(3)? / 2;
    let wide_x = wide(x)?;
    let (first, second) = (wide_x.narrow(3, 0, pairs)?, wide_x.narrow(3, pairs, pairs)?);
    let turned_first = (first.broadcast_mul(cosines)? - second.broadcast_mul(sines)?)?;
    let turned_second = (second.broadcast_mul(cosines)? + first.broadcast_mul(sines)?)?;
    Tensor::cat(&[turned_first, turned_second], 3)?.to_dtype(x.dtype())
}
