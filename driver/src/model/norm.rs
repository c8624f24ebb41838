//! RMSNorm: candle's own has no backward.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    composed,
    elements::{Element, constant, dot, elements, for_element_of},
    form::Form,
};

/// `x / sqrt(mean(x²) + ε) · weight` over the last dimension.
pub struct Norm {
    pub weight: Tensor,
    pub epsilon: f64,
}

impl Norm {
    pub fn new(weight: Tensor, epsilon: f64) -> Self {
        Self { weight, epsilon }
    }

    /// Trains the weight no further.
    pub fn freeze(&mut self) {
        self.weight = self.weight.detach();
    }

    pub fn forward(&self, x: &Tensor, form: Form) -> Result<Tensor> {
        let epsilon = self.epsilon;
        match form {
            Form::Fused => x.contiguous()?.apply_op2(&self.weight, RmsNorm { epsilon }),
            Form::Composed => composed::norm::rms_norm(x, &self.weight, epsilon),
        }
    }
}

struct RmsNorm {
    epsilon: f64,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_element_of!(x, T => {
            let output = normalise::<T>(elements(x, x_layout)?, elements(weight, weight_layout)?, self.epsilon);
            Ok((candle_core::WithDType::to_cpu_storage_owned(output), x_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let epsilon = self.epsilon;
        let of_x = || x.apply_op3_no_bwd(weight, &gradient, &InputGradient { epsilon });
        let of_weight = || x.apply_op2_no_bwd(&gradient, &WeightGradient { epsilon });
        Ok((
            x.track_op().then(of_x).transpose()?,
            weight.track_op().then(of_weight).transpose()?,
        ))
    }
}

struct InputGradient {
    epsilon: f64,
}

impl CustomOp3 for InputGradient {
    fn name(&self) -> &'static str {
        "rms-norm-input-gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_element_of!(x, T => {
            let output = input_gradient::<T>(
                elements(x, x_layout)?,
                elements(weight, weight_layout)?,
                elements(gradient, gradient_layout)?,
                self.epsilon,
            );
            Ok((candle_core::WithDType::to_cpu_storage_owned(output), x_layout.shape().clone()))
        })
    }
}

struct WeightGradient {
    epsilon: f64,
}

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        "rms-norm-weight-gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = x_layout.shape().dims().last().copied().unwrap_or(1);
        for_element_of!(x, T => {
            let output = weight_gradient::<T>(
                elements(x, x_layout)?,
                elements(gradient, gradient_layout)?,
                width,
                self.epsilon,
            );
            Ok((candle_core::WithDType::to_cpu_storage_owned(output), Shape::from(width)))
        })
    }
}

fn inverse_root_mean_square<T: Element>(row: &[T], epsilon: f64) -> T {
    (dot(row, row) / constant(row.len() as f64) + constant(epsilon))
        .sqrt()
        .recip()
}

pub fn normalise<T: Element>(x: &[T], weight: &[T], epsilon: f64) -> Vec<T> {
    let mut output = vec![T::zero(); x.len()];
    let rows = output
        .par_chunks_mut(weight.len())
        .zip(x.par_chunks(weight.len()));
    rows.with_min_len(64).for_each(|(output, row)| {
        let scale = inverse_root_mean_square(row, epsilon);
        for ((output, &x), &weight) in output.iter_mut().zip(row).zip(weight) {
            *output = x * scale * weight;
        }
    });
    output
}

pub fn input_gradient<T: Element>(x: &[T], weight: &[T], gradient: &[T], epsilon: f64) -> Vec<T> {
    let width = weight.len();
    let mut output = vec![T::zero(); x.len()];
    let rows = output
        .par_chunks_mut(width)
        .zip(x.par_chunks(width))
        .zip(gradient.par_chunks(width));
    rows.with_min_len(64).for_each(|((output, row), gradient)| {
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

fn weight_gradient<T: Element>(x: &[T], gradient: &[T], width: usize, epsilon: f64) -> Vec<T> {
    let mut output = vec![T::zero(); width];
    for (row, gradient) in x.chunks(width).zip(gradient.chunks(width)) {
        let scale = inverse_root_mean_square(row, epsilon);
        for ((output, &x), &gradient) in output.iter_mut().zip(row).zip(gradient) {
            *output += x * scale * gradient;
        }
    }
    output
}
