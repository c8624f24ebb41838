//! RMSNorm.

use candle_core::{D, Result, Tensor};

use super::{differentiable, wide};

/// As [`Norm`](super::super::norm::Norm).
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    differentiable(
        [x, weight],
        |[x, weight]| {
            let wide_x = wide(x)?;
            let normed = wide_x.broadcast_mul(&inverse_root_mean_square(&wide_x, epsilon)?)?;
            normed.broadcast_mul(&wide(weight)?)?.to_dtype(x.dtype())
        },
        move |[x, weight], gradient, [of_x, of_weight]| {
            let (wide_x, gradient) = (wide(x)?, wide(gradient)?);
            let scale = inverse_root_mean_square(&wide_x, epsilon)?;
            let normed = wide_x.broadcast_mul(&scale)?;
            let of_x = of_x.then(|| {
                let of_normed = gradient.broadcast_mul(&wide(weight)?)?;
                let along = (&of_normed * &normed)?.mean_keepdim(D::Minus1)?;
                let across = (of_normed - normed.broadcast_mul(&along)?)?;
                across.broadcast_mul(&scale)?.to_dtype(x.dtype())
            });
            let of_weight = of_weight.then(|| {
                let of_rows = (&gradient * &normed)?.reshape(((), weight.elem_count()))?;
                of_rows.sum(0)?.to_dtype(weight.dtype())
            });
            Ok([of_x.transpose()?, of_weight.transpose()?])
        },
    )
}

fn inverse_root_mean_square(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    (x.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?
        .sqrt()?
        .recip()
}
