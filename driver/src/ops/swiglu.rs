//! The gate of the feed-forward block, fused on the CPU in f32 and f64 and composed elsewhere.

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::sigmoid;
use rayon::prelude::*;

use super::{
    differentiable::{differentiable, widen},
    fused::{Float, fused_or_composed, map_slices, with_slices},
};

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
    fused_or_composed!(
        gate, T => map_slices([gate, up], |[gate, up]| fused::gated::<T>(gate, up)),
        composed::gated(gate, up)
    )
}

/// Computes the gradients of `gate` and of `up` from that of the result.
pub(super) fn gradients(gate: &Tensor, up: &Tensor, gradient: &Tensor) -> Result<[Tensor; 2]> {
    fused_or_composed!(
        gate, T => {
            let (of_gate, of_up) = with_slices([gate, up, gradient], |[gate, up, gradient]| {
                fused::gradients::<T>(gate, up, gradient)
            })?;
            let tensor = |values| Tensor::from_vec(values, gate.shape(), &Device::Cpu);
            Ok([tensor(of_gate)?, tensor(of_up)?])
        },
        composed::gradients(gate, up, gradient)
    )
}

mod composed {
    use super::*;

    pub fn gated(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        (widen(gate)?.silu()? * widen(up)?)?.to_dtype(gate.dtype())
    }

    pub fn gradients(gate: &Tensor, up: &Tensor, gradient: &Tensor) -> Result<[Tensor; 2]> {
        let (wide_gate, gradient) = (widen(gate)?, widen(gradient)?);
        let open = sigmoid(&wide_gate)?;
        let silu = (&wide_gate * &open)?;
        // The derivative of silu is σ + silu · (1 − σ).
        let slope = (&open + (&silu - (&silu * &open)?)?)?;
        let of_gate = ((&gradient * widen(up)?)? * slope)?.to_dtype(gate.dtype())?;
        Ok([of_gate, (gradient * silu)?.to_dtype(up.dtype())?])
    }
}

mod fused {
    use super::*;

    /// The number of elements that a thread takes at a time.
    const BLOCK: usize = 4_096;

    pub fn gated<T: Float>(gate: &[T], up: &[T]) -> Vec<T> {
        let mut output = vec![T::zero(); gate.len()];
        let blocks = output.par_chunks_mut(BLOCK).zip(gate.par_chunks(BLOCK));
        blocks
            .zip(up.par_chunks(BLOCK))
            .for_each(|((output, gate), up)| {
                for ((output, &gate), &up) in output.iter_mut().zip(gate).zip(up) {
                    *output = gate * sigmoid(gate) * up;
                }
            });
        output
    }

    pub fn gradients<T: Float>(gate: &[T], up: &[T], gradient: &[T]) -> (Vec<T>, Vec<T>) {
        let mut of_gate = vec![T::zero(); gate.len()];
        let mut of_up = vec![T::zero(); gate.len()];
        let outputs = (of_gate.par_chunks_mut(BLOCK)).zip(of_up.par_chunks_mut(BLOCK));
        let inputs = gate.par_chunks(BLOCK).zip(up.par_chunks(BLOCK));
        outputs
            .zip(inputs.zip(gradient.par_chunks(BLOCK)))
            .for_each(|((of_gate, of_up), ((gate, up), gradient))| {
                let outputs = of_gate.iter_mut().zip(of_up);
                let inputs = gate.iter().zip(up).zip(gradient);
                for ((of_gate, of_up), ((&gate, &up), &gradient)) in outputs.zip(inputs) {
                    let open = sigmoid(gate);
                    *of_up = gradient * gate * open;
                    *of_gate = gradient * up * open * (T::one() + gate * (T::one() - open));
                }
            });
        (of_gate, of_up)
    }

    fn sigmoid<T: Float>(x: T) -> T {
        (T::one() + (-x).exponential()).recip()
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
            let [gate, up, gradient] = [0.3, 1.1, 0.7].map(|from| wave(&[3, 2_000], from, dtype));
            let gate = (gate * 9.0).unwrap();
            let found = gated(&gate, &up).unwrap();
            assert_close(&found, &composed::gated(&gate, &up).unwrap());
            let found = gradients(&gate, &up, &gradient).unwrap();
            let expected = composed::gradients(&gate, &up, &gradient).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(found, expected);
            }
        }
    }
}
