//! RMSNorm, fused on the CPU in f32 and f64 and composed elsewhere.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::{
    differentiable::{differentiable, widen},
    fused::{Float, constant, dot, fused_or_composed, map_slices},
};

/// Computes `x / sqrt(mean(x²) + epsilon) · weight` over the last dimension, for `x [.., width]` and `weight [width]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    differentiable(
        [x, weight],
        |[x, weight]| normalise(x, weight, epsilon),
        move |[x, weight], gradient, [x_wanted, weight_wanted]| {
            let of_x = x_wanted.then(|| input_gradient(x, weight, gradient, epsilon));
            let of_weight = weight_wanted.then(|| weight_gradient(x, weight, gradient, epsilon));
            Ok([of_x.transpose()?, of_weight.transpose()?])
        },
    )
}

/// Computes the result of [`rms_norm`].
pub(super) fn normalise(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    fused_or_composed!(
        x, T => map_slices([x, weight], |[x, weight]| fused::normalise::<T>(x, weight, epsilon)),
        composed::normalise(x, weight, epsilon)
    )
}

/// Computes the gradient of `x` from that of the result.
pub(super) fn input_gradient(
    x: &Tensor,
    weight: &Tensor,
    gradient: &Tensor,
    epsilon: f64,
) -> Result<Tensor> {
    fused_or_composed!(
        x, T => map_slices([x, weight, gradient], |[x, weight, gradient]| {
            fused::input_gradient::<T>(x, weight, gradient, epsilon)
        }),
        composed::input_gradient(x, weight, gradient, epsilon)
    )
}

fn weight_gradient(x: &Tensor, weight: &Tensor, gradient: &Tensor, epsilon: f64) -> Result<Tensor> {
    fused_or_composed!(
        x, T => map_slices([weight, x, gradient], |[weight, x, gradient]| {
            fused::weight_gradient::<T>(x, gradient, weight.len(), epsilon)
        }),
        composed::weight_gradient(x, weight, gradient, epsilon)
    )
}

mod composed {
    use super::*;

    pub fn normalise(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
        let (normalised, _) = normalised(x, epsilon)?;
        (normalised.broadcast_mul(&widen(weight)?)?).to_dtype(x.dtype())
    }

    pub fn input_gradient(
        x: &Tensor,
        weight: &Tensor,
        gradient: &Tensor,
        epsilon: f64,
    ) -> Result<Tensor> {
        let (normalised, scale) = normalised(x, epsilon)?;
        let of_normalised = widen(gradient)?.broadcast_mul(&widen(weight)?)?;
        let along = (&of_normalised * &normalised)?.mean_keepdim(D::Minus1)?;
        let across = (of_normalised - normalised.broadcast_mul(&along)?)?;
        across.broadcast_mul(&scale)?.to_dtype(x.dtype())
    }

    pub fn weight_gradient(
        x: &Tensor,
        weight: &Tensor,
        gradient: &Tensor,
        epsilon: f64,
    ) -> Result<Tensor> {
        let (normalised, _) = normalised(x, epsilon)?;
        let of_rows = (widen(gradient)? * normalised)?.reshape(((), weight.elem_count()))?;
        of_rows.sum(0)?.to_dtype(weight.dtype())
    }

    /// Returns `x` divided by its root mean square, and the reciprocal of that root.
    fn normalised(x: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
        let x = widen(x)?;
        let mean_square = (x.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?;
        let scale = mean_square.sqrt()?.recip()?;
        Ok((x.broadcast_mul(&scale)?, scale))
    }
}

mod fused {
    use super::*;

    /// The fewest rows that a thread takes at a time.
    const ROWS: usize = 64;

    pub fn normalise<T: Float>(x: &[T], weight: &[T], epsilon: f64) -> Vec<T> {
        let width = weight.len();
        let mut output = vec![T::zero(); x.len()];
        let rows = output.par_chunks_mut(width).zip(x.par_chunks(width));
        rows.with_min_len(ROWS).for_each(|(output, row)| {
            let scale = inverse_root_mean_square(row, epsilon);
            for ((output, &x), &weight) in output.iter_mut().zip(row).zip(weight) {
                *output = x * scale * weight;
            }
        });
        output
    }

    pub fn input_gradient<T: Float>(x: &[T], weight: &[T], gradient: &[T], epsilon: f64) -> Vec<T> {
        let width = weight.len();
        let mut output = vec![T::zero(); x.len()];
        let rows = output.par_chunks_mut(width).zip(x.par_chunks(width));
        let rows = rows.zip(gradient.par_chunks(width)).with_min_len(ROWS);
        rows.for_each(|((output, row), gradient)| {
            let scale = inverse_root_mean_square(row, epsilon);
            for ((output, &weight), &gradient) in output.iter_mut().zip(weight).zip(gradient) {
                *output = weight * gradient;
            }
            let along = dot(output, row);
            let pull = along * scale * scale * scale / constant(width as f64);
            for (output, &x) in output.iter_mut().zip(row) {
                *output = *output * scale - x * pull;
            }
        });
        output
    }

    pub fn weight_gradient<T: Float>(
        x: &[T],
        gradient: &[T],
        width: usize,
        epsilon: f64,
    ) -> Vec<T> {
        let mut output = vec![T::zero(); width];
        for (row, gradient) in x.chunks(width).zip(gradient.chunks(width)) {
            let scale = inverse_root_mean_square(row, epsilon);
            for ((output, &x), &gradient) in output.iter_mut().zip(row).zip(gradient) {
                *output += x * scale * gradient;
            }
        }
        output
    }

    fn inverse_root_mean_square<T: Float>(row: &[T], epsilon: f64) -> T {
        (dot(row, row) / constant(row.len() as f64) + constant(epsilon))
            .sqrt()
            .recip()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::ops::tests::{assert_close, wave};

    #[test]
    fn the_fused_version_is_the_composed_one() {
        for dtype in [DType::F32, DType::F64] {
            let [x, gradient] = [0.3, 1.1].map(|from| wave(&[5, 33], from, dtype));
            let weight = wave(&[33], 0.7, dtype);
            let found = normalise(&x, &weight, 1e-5).unwrap();
            assert_close(&found, &composed::normalise(&x, &weight, 1e-5).unwrap());
            let found = input_gradient(&x, &weight, &gradient, 1e-5).unwrap();
            let expected = composed::input_gradient(&x, &weight, &gradient, 1e-5).unwrap();
            assert_close(&found, &expected);
            let found = weight_gradient(&x, &weight, &gradient, 1e-5).unwrap();
            let expected = composed::weight_gradient(&x, &weight, &gradient, 1e-5).unwrap();
            assert_close(&found, &expected);
        }
    }
}
