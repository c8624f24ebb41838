//! The gate of the feed-forward block.

use candle_core::{Result, Tensor};
use candle_nn::ops::sigmoid;

use super::differentiable::{differentiable, widen};

/// Computes `silu(gate) · up` element by element, for two tensors of the same shape.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    differentiable(
        [gate, up],
        |[gate, up]| gated(gate, up),
        |[gate, up], gradient, _| Ok(gradients(gate, up, gradient)?.map(Some)),
    )
}

/// Computes the result of [`swiglu`].
pub(super) fn gated(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    (widen(gate)?.silu()? * widen(up)?)?.to_dtype(gate.dtype())
}

/// Computes the gradients of `gate` and of `up` from that of the result.
pub(super) fn gradients(gate: &Tensor, up: &Tensor, gradient: &Tensor) -> Result<[Tensor; 2]> {
    let (wide_gate, gradient) = (widen(gate)?, widen(gradient)?);
    let open = sigmoid(&wide_gate)?;
    let silu = (&wide_gate * &open)?;
    // The derivative of silu is σ + silu · (1 − σ).
    let slope = (&open + (&silu - (&silu * &open)?)?)?;
    let of_gate = ((&gradient * widen(up)?)? * slope)?.to_dtype(gate.dtype())?;
    Ok([of_gate, (gradient * silu)?.to_dtype(up.dtype())?])
}
