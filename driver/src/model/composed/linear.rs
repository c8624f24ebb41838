//! Linear layers. Adapters are in f32 whatever the weight beside them is in, and so is all that they compute.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::{
    super::{linear::Adapted, lora::Dropout},
    differentiable, wide,
};

/// `x · weightᵀ + bias`, where the bias is not trained.
pub fn product(x: &Tensor, weight: &Tensor, bias: Option<Tensor>) -> Result<Tensor> {
    differentiable(
        [x, weight],
        |[x, weight]| {
            let product = rows(x)?.matmul(&weight.t()?)?;
            let output = match bias {
                Some(bias) => product.broadcast_add(&bias)?,
                None => product,
            };
            like_rows(&output, x)
        },
        |[x, weight], gradient, [of_x, of_weight]| {
            let gradient = rows(gradient)?;
            let of_x = of_x.then(|| gradient.matmul(weight)?.reshape(x.shape()));
            let of_weight = of_weight.then(|| gradient.t()?.matmul(&rows(x)?));
            Ok([of_x.transpose()?, of_weight.transpose()?])
        },
    )
}

/// As [`Adapted`] does in one operation.
pub fn adapted(layer: Adapted, x: &Tensor, down: &Tensor, up: &Tensor) -> Result<Tensor> {
    let layer = Arc::new(layer);
    let again = layer.clone();
    differentiable(
        [x, down, up],
        |[x, down, up]| {
            let whole = wide(&product(x, &layer.weight, layer.bias.clone())?)?;
            let input = dropped(&rows(&wide(x)?)?, &layer.dropout)?;
            let change = (input.matmul(&down.t()?)?.matmul(&up.t()?)? * layer.scale)?;
            (like_rows(&change, x)? + whole)?.to_dtype(x.dtype())
        },
        move |[x, down, up], gradient, [of_x, ..]| {
            let input = dropped(&rows(&wide(x)?)?, &again.dropout)?;
            let of_change = (rows(&wide(gradient)?)? * again.scale)?;
            let of_low = of_change.matmul(up)?;
            let of_x = of_x.then(|| {
                let of_input = dropped(&of_low.matmul(down)?, &again.dropout)?;
                let beside = wide(&rows(gradient)?.matmul(&again.weight)?)?;
                (of_input + beside)?.reshape(x.shape())?.to_dtype(x.dtype())
            });
            Ok([
                of_x.transpose()?,
                Some(of_low.t()?.matmul(&input)?),
                Some(of_change.t()?.matmul(&input.matmul(&down.t()?)?)?),
            ])
        },
    )
}

/// The values that do not drop out, enlarged: the same ones whenever it is asked.
fn dropped(x: &Tensor, dropout: &Option<Dropout>) -> Result<Tensor> {
    let Some(dropout) = dropout else {
        return Ok(x.clone());
    };
    let kept = dropout.apply(&vec![1f64; x.elem_count()]);
    let kept = Tensor::from_vec(kept, x.shape(), &Device::Cpu)?;
    x * kept.to_dtype(x.dtype())?.to_device(x.device())?
}

/// All rows `[rows, width]`.
fn rows(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(candle_core::D::Minus1)?;
    x.contiguous()?.reshape(((), width))
}

/// Rows in the leading dimensions of `x`.
fn like_rows(rows: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    if let Some(width) = shape.last_mut() {
        *width = rows.dim(1)?;
    }
    rows.reshape(shape)
}
