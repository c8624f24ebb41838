//! Linear layers, with a low-rank adapter (LoRA) or without.

use candle_core::{D, Result, Tensor};

use super::{
    differentiable::{differentiable, widen},
    dropout::Dropout,
};

/// Computes `x · weightᵀ + bias`, for `x [.., in]`, `weight [out, in]` and `bias [out]`. Unlike candle's `matmul`, it
/// computes no gradient for a weight that is not trained.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        None => differentiable(
            [x, weight],
            |[x, weight]| project(x, weight),
            |[x, weight], gradient, wanted| gradients(x, weight, gradient, wanted),
        ),
        Some(bias) => differentiable(
            [x, weight, bias],
            |[x, weight, bias]| project(x, weight)?.broadcast_add(bias),
            |[x, weight, _], gradient, [of_x, of_weight, of_bias]| {
                let [x, weight] = gradients(x, weight, gradient, [of_x, of_weight])?;
                let bias = of_bias.then(|| rows(gradient)?.sum(0)).transpose()?;
                Ok([x, weight, bias])
            },
        ),
    }
}

/// Computes the gradients of `x` and of `weight`, where they are wanted.
fn gradients(
    x: &Tensor,
    weight: &Tensor,
    gradient: &Tensor,
    [x_wanted, weight_wanted]: [bool; 2],
) -> Result<[Option<Tensor>; 2]> {
    let of_x = x_wanted.then(|| input_gradient(weight, gradient));
    let of_weight = weight_wanted.then(|| weight_gradient(x, gradient));
    Ok([of_x.transpose()?, of_weight.transpose()?])
}

/// A low-rank adapter (LoRA) beside a linear layer whose own weights are frozen: it adds
/// `scale · (x ⊙ dropout) · downᵀ · upᵀ`. It computes in f32 also beside a weight in f16 or bf16.
pub struct LowRank<'a> {
    /// `[rank, in]`, PEFT's `lora_A`.
    pub down: &'a Tensor,
    /// `[out, rank]`, PEFT's `lora_B`.
    pub up: &'a Tensor,
    /// The factor of what is added.
    pub scale: f64,
    /// The dropout of `x` before `down`. `None` means no dropout.
    pub dropout: Option<Dropout>,
}

/// Computes `x · weightᵀ + bias` with a low-rank adapter. Gradients go to `x` and the adapter, not to the frozen
/// `weight [out, in]` and `bias [out]`.
pub fn linear_with_lora(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    LowRank {
        down,
        up,
        scale,
        dropout,
    }: LowRank,
) -> Result<Tensor> {
    let weight = weight.detach();
    let frozen = weight.clone();
    let saved_dropout = dropout.clone();
    differentiable(
        [x, down, up],
        |[x, down, up]| {
            let whole = project(x, &weight)?;
            let whole = match bias {
                Some(bias) => whole.broadcast_add(&bias.detach())?,
                None => whole,
            };
            // The scale is applied to the narrow tensors between `down` and `up`.
            let inner = (project(&dropped(&widen(x)?, &dropout)?, down)? * scale)?;
            (widen(&whole)? + project(&inner, up)?)?.to_dtype(x.dtype())
        },
        move |[x, down, up], gradient, [x_wanted, ..]| {
            let input = dropped(&widen(x)?, &saved_dropout)?;
            let inner = (project(&input, down)? * scale)?;
            let wide_gradient = widen(gradient)?;
            let of_inner = (input_gradient(up, &wide_gradient)? * scale)?;
            let of_x = x_wanted.then(|| {
                let beside = input_gradient(&frozen, gradient)?;
                let of_input = dropped(&input_gradient(down, &of_inner)?, &saved_dropout)?;
                (of_input + widen(&beside)?)?.to_dtype(x.dtype())
            });
            Ok([
                of_x.transpose()?,
                Some(weight_gradient(&input, &of_inner)?),
                Some(weight_gradient(&inner, &wide_gradient)?),
            ])
        },
    )
}

fn dropped(x: &Tensor, dropout: &Option<Dropout>) -> Result<Tensor> {
    match dropout {
        Some(dropout) => x * dropout.factors(x)?,
        None => Ok(x.clone()),
    }
}

/// What counts as few rows, and as a narrow weight.
const FEW: usize = 128;

/// Computes `x · weightᵀ` for `x [.., in]` and `weight [out, in]`.
///
/// On the CPU, gemm first copies the left one of two such matrices into an order of its own. Copying a wide weight costs
/// as much as a product with some forty rows, so few rows, as decoding has them, take that place themselves.
pub(super) fn project(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let flat = rows(x)?;
    let (count, width) = flat.dims2()?;
    let swap = x.device().is_cpu() && (2..FEW).contains(&count) && width >= FEW;
    let product = match swap {
        true => weight.matmul(&flat.t()?)?.t()?.contiguous()?,
        false => flat.matmul(&weight.t()?)?,
    };
    with_leading_dims(product, x)
}

/// Computes the gradient of `x` in `x · weightᵀ` from that of the product.
pub(super) fn input_gradient(weight: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    with_leading_dims(rows(gradient)?.matmul(weight)?, gradient)
}

/// Computes the gradient of `weight` in `x · weightᵀ` from that of the product.
fn weight_gradient(x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    rows(gradient)?.t()?.matmul(&rows(x)?)
}

/// Returns all rows of a tensor as one matrix `[rows, width]`.
fn rows(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    x.contiguous()?.reshape(((), width))
}

/// Gives a matrix `[rows, width]` the leading dimensions of `like`.
fn with_leading_dims(rows: Tensor, like: &Tensor) -> Result<Tensor> {
    let mut shape = like.dims().to_vec();
    if let Some(width) = shape.last_mut() {
        *width = rows.dim(1)?;
    }
    rows.reshape(shape)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::ops::tests::{assert_close, wave};

    #[test]
    fn few_rows_and_many_are_multiplied_alike_by_narrow_and_by_wide_weights() {
        for count in [1, 2, FEW - 1, FEW] {
            for width in [8, FEW] {
                let x = wave(&[1, count, width], 0.3, DType::F64);
                let weight = wave(&[5, width], 1.1, DType::F64);
                let expected = x.broadcast_matmul(&weight.t().unwrap()).unwrap();
                assert_close(&project(&x, &weight).unwrap(), &expected);
            }
        }
    }
}
