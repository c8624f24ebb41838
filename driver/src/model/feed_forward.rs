//! The gate of the feed-forward block, `silu(gate) · up`, in one pass each way.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    composed,
    elements::{Element, elements, for_element_of},
    form::Form,
};

/// `silu(gate) · up`, element by element.
pub fn gated(gate: &Tensor, up: &Tensor, form: Form) -> Result<Tensor> {
    match form {
        Form::Fused => gate.contiguous()?.apply_op2(&up.contiguous()?, Gated),
        Form::Composed => composed::gate::gated(gate, up),
    }
}

/// Elements that one task takes at a time.
const BLOCK: usize = 4_096;

struct Gated;

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_element_of!(gate, T => {
            let output = gated_values::<T>(elements(gate, gate_layout)?, elements(up, up_layout)?);
            Ok((candle_core::WithDType::to_cpu_storage_owned(output), gate_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let gate_gradient = gate.apply_op3_no_bwd(up, &gradient, &GateGradient)?;
        let up_gradient = gate.apply_op2_no_bwd(&gradient, &Gated)?;
        Ok((Some(gate_gradient), Some(up_gradient)))
    }
}

struct GateGradient;

impl CustomOp3 for GateGradient {
    fn name(&self) -> &'static str {
        "gated-gate-gradient"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_element_of!(gate, T => {
            let output = gate_gradient::<T>(
                elements(gate, gate_layout)?,
                elements(up, up_layout)?,
                elements(gradient, gradient_layout)?,
            );
            Ok((candle_core::WithDType::to_cpu_storage_owned(output), gate_layout.shape().clone()))
        })
    }
}

fn sigmoid<T: Element>(x: T) -> T {
    (T::one() + (-x).exponential()).recip()
}

pub fn gated_values<T: Element>(gate: &[T], up: &[T]) -> Vec<T> {
    let mut output = vec![T::zero(); gate.len()];
    let blocks = output
        .par_chunks_mut(BLOCK)
        .zip(gate.par_chunks(BLOCK))
        .zip(up.par_chunks(BLOCK));
    blocks.for_each(|((output, gate), up)| {
        for ((output, &gate), &up) in output.iter_mut().zip(gate).zip(up) {
            *output = gate * sigmoid(gate) * up;
        }
    });
    output
}

fn gate_gradient<T: Element>(gate: &[T], up: &[T], gradient: &[T]) -> Vec<T> {
    let mut output = vec![T::zero(); gate.len()];
    let blocks = output
        .par_chunks_mut(BLOCK)
        .zip(gate.par_chunks(BLOCK))
        .zip(up.par_chunks(BLOCK))
        .zip(gradient.par_chunks(BLOCK));
    blocks.for_each(|(((output, gate), up), gradient)| {
        for (((output, &gate), &up), &gradient) in output.iter_mut().zip(gate).zip(up).zip(gradient)
        {
            let open = sigmoid(gate);
            *output = gradient * up * open * (T::one() + gate * (T::one() - open));
        }
    });
    output
}

/// Turns the gradient of `silu(gate) · up` into that of `gate`, in place, and gives that of `up`.
pub fn open_gates<T: Element>(gate: &[T], up: &[T], gradient: &mut [T]) -> Vec<T> {
    let mut of_up = vec![T::zero(); gate.len()];
    let places = gradient.iter_mut().zip(&mut of_up).zip(gate).zip(up);
    for (((gradient, of_up), &gate), &up) in places {
        let open = sigmoid(gate);
        *of_up = *gradient * gate * open;
        *gradient = *gradient * up * open * (T::one() + gate * (T::one() - open));
    }
    of_up
}
