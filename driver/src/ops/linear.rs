//! Linear layers, with a low-rank adapter (LoRA) or without.

use std::marker::PhantomData;

use candle_core::{CpuStorage, D, Device, InplaceOp3, Layout, Result, Tensor, bail};

use super::{
    differentiable::{differentiable, widen},
    dropout::Dropout,
    fused::{Float, fused_or_composed, with_slices},
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
            add_product(widen(&whole)?, &inner, &up.t()?)?.to_dtype(x.dtype())
        },
        move |[x, down, up], gradient, [x_wanted, ..]| {
            let input = dropped(&widen(x)?, &saved_dropout)?;
            let inner = (project(&input, down)? * scale)?;
            let wide_gradient = widen(gradient)?;
            let of_inner = (input_gradient(up, &wide_gradient)? * scale)?;
            let of_x = x_wanted.then(|| {
                let beside = widen(&input_gradient(&frozen, gradient)?)?;
                let of_x = match saved_dropout {
                    None => add_product(beside, &of_inner, down)?,
                    Some(_) => {
                        (dropped(&input_gradient(down, &of_inner)?, &saved_dropout)? + beside)?
                    }
                };
                of_x.to_dtype(x.dtype())
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
        true => transpose(&weight.matmul(&flat.t()?)?)?,
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

/// Transposes a matrix and moves its elements, which candle does one by one.
fn transpose(x: &Tensor) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    fused_or_composed!(
        x, T => {
            let moved = with_slices([x], |[x]| transposed::<T>(x, rows, columns))?;
            Tensor::from_vec(moved, (columns, rows), &Device::Cpu)
        },
        x.t()?.contiguous()
    )
}

fn transposed<T: Float>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    // So many rows that what is written and what is read of them stays in the cache.
    const BLOCK: usize = 16;
    let mut output = vec![T::zero(); x.len()];
    for (first, x) in (0..rows).step_by(BLOCK).zip(x.chunks(BLOCK * columns)) {
        for (column, output) in output.chunks_mut(rows).enumerate() {
            let column = x[column..].iter().step_by(columns);
            for (output, &x) in output[first..].iter_mut().zip(column) {
                *output = x;
            }
        }
    }
    output
}

/// Computes `sum + left · right`, for `sum [.., out]`, `left [.., in]` and `right [in, out]`. On the CPU in f32 and f64 it
/// overwrites `sum`, which must be a tensor that nothing else reads.
pub(super) fn add_product(sum: Tensor, left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (flat, left) = (rows(&sum)?, rows(left)?);
    fused_or_composed!(
        sum, T => {
            flat.inplace_op3(&left, right, &AddProduct::<T>(PhantomData))?;
            with_leading_dims(flat, &sum)
        },
        with_leading_dims((flat + left.matmul(right)?)?, &sum)
    )
}

struct AddProduct<T>(PhantomData<T>);

impl<T: Float> InplaceOp3 for AddProduct<T> {
    fn name(&self) -> &'static str {
        "add-product"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        sum_layout: &Layout,
        left: &CpuStorage,
        left_layout: &Layout,
        right: &CpuStorage,
        right_layout: &Layout,
    ) -> Result<()> {
        let shapes = [sum_layout, left_layout, right_layout].map(|layout| layout.shape().dims2());
        let [
            (rows, columns),
            (left_rows, inner),
            (right_rows, right_columns),
        ] = match shapes {
            [Ok(sum), Ok(left), Ok(right)] => [sum, left, right],
            _ => bail!("expected three matrices"),
        };
        if (rows, columns, inner) != (left_rows, right_columns, right_rows) {
            bail!(
                "the product of {left_rows} × {inner} and {right_rows} × {right_columns} is not {rows} × {columns}"
            );
        }
        let Some((start, _)) = sum_layout.contiguous_offsets() else {
            bail!("expected a contiguous sum, got {sum_layout:?}");
        };
        let (left, right) = (
            T::cpu_storage_as_slice(left)?,
            T::cpu_storage_as_slice(right)?,
        );
        let stride = |layout: &Layout, dimension: usize| layout.stride()[dimension] as isize;
        let mut values = T::cpu_storage_data(std::mem::replace(sum, CpuStorage::U8(Vec::new())))?;
        // SAFETY: a layout of candle's lies inside its storage, and the shapes fit together. `values` is borrowed mutably and
        // so apart from both others. `T` is f32 or f64, which gemm knows.
        unsafe {
            gemm::gemm(
                rows,
                columns,
                inner,
                values[start..].as_mut_ptr(),
                1,
                columns as isize,
                true,
                left[left_layout.start_offset()..].as_ptr(),
                stride(left_layout, 1),
                stride(left_layout, 0),
                right[right_layout.start_offset()..].as_ptr(),
                stride(right_layout, 1),
                stride(right_layout, 0),
                T::one(),
                T::one(),
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        *sum = T::to_cpu_storage_owned(values);
        Ok(())
    }
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
    fn a_product_is_added_to_a_sum_of_any_shape_also_from_transposed_parts() {
        for dtype in [DType::F32, DType::F64, DType::F16] {
            let sum = wave(&[2, 3, 5], 0.3, dtype);
            let (left, right) = (wave(&[2, 3, 4], 1.1, dtype), wave(&[5, 4], 0.7, dtype));
            let right = right.t().unwrap();
            let expected = (&sum + left.broadcast_matmul(&right).unwrap()).unwrap();
            let found = add_product(sum.copy().unwrap(), &left, &right).unwrap();
            let [found, expected] = [found, expected].map(|x| x.to_dtype(DType::F32).unwrap());
            assert_close(&found, &expected);
            let transposed_left = wave(&[3, 4], 0.2, dtype).t().unwrap();
            assert!(add_product(sum, &transposed_left, &right).is_err());
        }
    }

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
