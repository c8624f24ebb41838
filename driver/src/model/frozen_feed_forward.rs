//! A feed-forward block that is not trained, in one operation: of all that it computes on the way, only the gate's and
//! the up projection's outputs are kept for the way back.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};

use super::{
    elements::{Element, Elements, elements, for_element_of},
    feed_forward::{gated_values, open_gates},
    matrix::{Matrix, multiply, project},
    norm::{input_gradient, normalise},
};

/// `x + down · (silu(gate · normed x) · up · normed x)`.
pub struct FrozenFeedForward {
    pub norm: Tensor,
    pub epsilon: f64,
    pub gate: Tensor,
    pub up: Tensor,
    pub down: Tensor,
    /// Outputs of gate and up, where there is a way back.
    inner: Mutex<Option<[Tensor; 2]>>,
    keep: bool,
}

impl FrozenFeedForward {
    /// With weights `norm [hidden]`, `gate` and `up [inner, hidden]`, `down [hidden, inner]`.
    pub fn new(norm: &Tensor, epsilon: f64, [gate, up, down]: [&Tensor; 3]) -> Self {
        Self {
            norm: norm.clone(),
            epsilon,
            gate: gate.clone(),
            up: up.clone(),
            down: down.clone(),
            inner: Mutex::new(None),
            keep: false,
        }
    }

    pub fn forward(mut self, x: &Tensor) -> Result<Tensor> {
        self.keep = x.track_op();
        x.contiguous()?.apply_op1(self)
    }

    fn output<T: Element>(&self, x: &[T]) -> Result<Vec<T>> {
        let norm = Elements::<T>::of(&self.norm)?;
        let (hidden, width) = self.down.dims2()?;
        let rows = x.len() / hidden;
        let normed = normalise(x, &norm, self.epsilon);
        let inner = |weight: &Tensor| -> Result<Vec<T>> {
            let mut output = vec![T::zero(); rows * width];
            let weight = Elements::<T>::of(weight)?;
            let (rows, weight) = (Matrix::new(&normed, hidden), Matrix::new(&weight, hidden));
            project(&mut output, T::zero(), rows, weight);
            Ok(output)
        };
        let (gate, up) = (inner(&self.gate)?, inner(&self.up)?);
        let gated = gated_values(&gate, &up);
        if self.keep {
            let tensor = |values| Tensor::from_vec(values, (rows, width), self.down.device());
            let kept = Some([tensor(gate)?, tensor(up)?]);
            *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        }
        let mut output = x.to_vec();
        let down = Elements::<T>::of(&self.down)?;
        let (rows, down) = (Matrix::new(&gated, width), Matrix::new(&down, width));
        project(&mut output, T::one(), rows, down);
        Ok(output)
    }

    fn gradient<T: Element>(&self, x: &[T], gradient: &[T]) -> Result<Vec<T>> {
        let (hidden, width) = self.down.dims2()?;
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some([gate, up]) = &*inner else {
            candle_core::bail!("a feed-forward block goes back without having gone forward");
        };
        let mut of_gate = vec![T::zero(); gradient.len() / hidden * width];
        let down = Elements::<T>::of(&self.down)?;
        let (rows, down) = (Matrix::new(gradient, hidden), Matrix::new(&down, width));
        multiply(&mut of_gate, width, T::zero(), rows, down, T::one());
        let of_up = open_gates(&Elements::of(gate)?, &Elements::of(up)?, &mut of_gate);

        let mut of_normed = vec![T::zero(); gradient.len()];
        for (weight, of_output, kept) in [
            (&self.gate, &of_gate, T::zero()),
            (&self.up, &of_up, T::one()),
        ] {
            let weight = Elements::<T>::of(weight)?;
            let weight = Matrix::new(&weight, hidden);
            multiply(
                &mut of_normed,
                hidden,
                kept,
                Matrix::new(of_output, width),
                weight,
                T::one(),
            );
        }
        let norm = Elements::<T>::of(&self.norm)?;
        let mut of_x = input_gradient(x, &norm, &of_normed, self.epsilon);
        for (of_x, &gradient) in of_x.iter_mut().zip(gradient) {
            *of_x += gradient;
        }
        Ok(of_x)
    }
}

impl CustomOp1 for FrozenFeedForward {
    fn name(&self) -> &'static str {
        "frozen-feed-forward"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_element_of!(x, T => {
            let output = self.output(elements::<T>(x, layout)?)?;
            Ok((T::to_cpu_storage_owned(output), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        for_element_of!(x, T => {
            let of_x = self.gradient::<T>(&Elements::of(x)?, &Elements::of(&gradient)?)?;
            Tensor::from_vec(of_x, x.shape(), x.device()).map(Some)
        })
    }
}
