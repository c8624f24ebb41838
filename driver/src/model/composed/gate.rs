//! The gate of the feed-forward block.

use candle_core::{Result, Tensor};

use super::{differentiable, sigmoid, wide};

/// `silu(gate) · up`.
pub fn gated(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    differentiable(
        [gate, up],
        |[gate, up]| {
            let wide_gate = wide(gate)?;
            let opened = (&wide_gate * sigmoid(&wide_gate)?)?;
            (opened * wide(up)?)?.to_dtype(gate.dtype())
        },
        |[gate, up], gradient, [of_gate, of_up]| {
            let (wide_gate, gradient) = (wide(gate)?, wide(gradient)?);
            let open = sigmoid(&wide_gate)?;
            let of_gate = of_gate.then(|| {
                let slope = ((&wide_gate * (1.0 - &open)?)? + 1.0)?;
                let of_opened = (&gradient * wide(up)?)?;
                ((of_opened * &open)? * slope)?.to_dtype(gate.dtype())
            });
            let of_up = of_up.then(|| ((&gradient * &wide_gate)? * &open)?.to_dtype(up.dtype()));
            Ok([of_gate.transpose()?, of_up.transpose()?])
        },
    )
}
