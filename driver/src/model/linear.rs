//! `x · weightᵀ (+ bias)`, with a low-rank adapter or without. A weight that is frozen gets no gradient: candle's own
//! product would make one.

use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail,
};

use super::{
    composed,
    elements::{Element, Elements, constant, elements, for_element_of},
    form::Form,
    lora::{Adapter, Dropout},
    matrix::{Matrix, multiply, project},
    pass::Pass,
};

/// A linear layer.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Linear {
    /// `weight [out, in]`, `bias [out]`; variables among them are trained.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self {
            weight,
            bias,
            adapter: None,
        }
    }

    /// Elements of an output row and of an input row.
    pub fn shape(&self) -> Result<(usize, usize)> {
        self.weight.dims2()
    }

    /// Trains weight and bias no further.
    pub fn freeze(&mut self) {
        self.weight = self.weight.detach();
        self.bias = self.bias.as_ref().map(Tensor::detach);
    }

    /// Puts an adapter beside the weight, which is frozen.
    pub fn adapt(&mut self, adapter: Adapter) {
        self.adapter = Some(adapter);
    }

    /// The weight, where it is all there is and not trained.
    pub fn frozen_weight(&self) -> Option<&Tensor> {
        let alone = self.adapter.is_none() && self.bias.is_none() && !self.weight.track_op();
        alone.then_some(&self.weight)
    }

    /// The weight with its adapter added to it.
    pub fn merged_weight(&self) -> Result<Tensor> {
        match &self.adapter {
            None => Ok(self.weight.clone()),
            Some(adapter) => {
                let change = (adapter.up.matmul(&adapter.down)?.detach() * adapter.scale)?;
                (self.weight.to_dtype(change.dtype())? + change)?.to_dtype(self.weight.dtype())
            }
        }
    }

    /// `x [.., in]` → `[.., out]`. In a pass with seeds the adapter's input drops out.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let x = x.contiguous()?;
        let Some(Adapter {
            down, up, scale, ..
        }) = &self.adapter
        else {
            return self.product(&x, pass.form);
        };
        let adapted = Adapted {
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            scale: *scale,
            dropout: self.dropout(pass),
        };
        match pass.form {
            Form::Fused => x.apply_op3(down, up, adapted),
            Form::Composed => composed::linear::adapted(adapted, &x, down, up),
        }
    }

    fn product(&self, x: &Tensor, form: Form) -> Result<Tensor> {
        let trained_bias = self.bias.as_ref().filter(|bias| bias.track_op());
        let bias = self.bias.clone().filter(|bias| !bias.track_op());
        let product = match form {
            Form::Fused => x.apply_op2(&self.weight, Product { bias })?,
            Form::Composed => composed::linear::product(x, &self.weight, bias)?,
        };
        match trained_bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }

    fn dropout(&self, pass: &Pass) -> Option<Dropout> {
        self.adapter.as_ref()?.dropout(pass.seeds.as_ref()?)
    }
}

/// The output's shape.
fn output_shape(x: &Layout, out: usize, width: usize) -> Result<Shape> {
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == width => *last = out,
        _ => bail!("a linear layer takes rows of {width} elements, got the shape {dims:?}"),
    }
    Ok(dims.into())
}

/// `x · weightᵀ + bias`, where the bias is not trained.
struct Product {
    bias: Option<Tensor>,
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, width) = weight_layout.shape().dims2()?;
        let shape = output_shape(x_layout, out, width)?;
        for_element_of!(x, T => {
            let x = elements::<T>(x, x_layout)?;
            let weight = elements(weight, weight_layout)?;
            let output = product(x, weight, width, self.bias.as_ref())?;
            Ok((T::to_cpu_storage_owned(output), shape))
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
        for_element_of!(x, T => {
            let x_gradient = match x.track_op() {
                true => Some(Tensor::from_vec(input_gradient::<T>(weight, &gradient)?, x.shape(), x.device())?),
                false => None,
            };
            let weight_gradient = match weight.track_op() {
                true => Some(Tensor::from_vec(weight_gradient::<T>(x, weight, &gradient)?, weight.shape(), x.device())?),
                false => None,
            };
            Ok((x_gradient, weight_gradient))
        })
    }
}

fn product<T: Element>(
    x: &[T],
    weight: &[T],
    width: usize,
    bias: Option<&Tensor>,
) -> Result<Vec<T>> {
    let (rows, out) = (x.len() / width, weight.len() / width);
    let (mut output, kept) = match bias {
        Some(bias) => (Elements::<T>::of(bias)?.repeat(rows), T::one()),
        None => (vec![T::zero(); rows * out], T::zero()),
    };
    let (x, weight) = (Matrix::new(x, width), Matrix::new(weight, width));
    project(&mut output, kept, x, weight);
    Ok(output)
}

fn input_gradient<T: Element>(weight: &Tensor, gradient: &Tensor) -> Result<Vec<T>> {
    let (out, width) = weight.dims2()?;
    let (weight, gradient) = (Elements::of(weight)?, Elements::of(gradient)?);
    let mut output = vec![T::zero(); gradient.len() / out * width];
    let (gradient, weight) = (Matrix::new(&gradient, out), Matrix::new(&weight, width));
    multiply(&mut output, width, T::zero(), gradient, weight, T::one());
    Ok(output)
}

fn weight_gradient<T: Element>(x: &Tensor, weight: &Tensor, gradient: &Tensor) -> Result<Vec<T>> {
    let (out, width) = weight.dims2()?;
    let (x, gradient) = (Elements::of(x)?, Elements::of(gradient)?);
    let mut output = vec![T::zero(); out * width];
    let (x, gradient) = (Matrix::new(&x, width), Matrix::new(&gradient, out));
    multiply(&mut output, width, T::zero(), gradient.t(), x, T::one());
    Ok(output)
}

/// `x · weightᵀ + bias + scale · (dropped x · downᵀ) · upᵀ`, for `x`, `down [rank, in]` and `up [out, rank]`.
pub struct Adapted {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub scale: f64,
    pub dropout: Option<Dropout>,
}

impl CustomOp3 for Adapted {
    fn name(&self) -> &'static str {
        "adapted-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        down: &CpuStorage,
        down_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, width) = self.weight.dims2()?;
        let shape = output_shape(x_layout, out, width)?;
        for_element_of!(x, T => {
            let (down, up) = (elements::<T>(down, down_layout)?, elements(up, up_layout)?);
            let output = self.output(elements(x, x_layout)?, down, up)?;
            Ok((T::to_cpu_storage_owned(output), shape))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        down: &Tensor,
        up: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        for_element_of!(x, T => {
            let [of_x, of_down, of_up] = self.gradients::<T>(x, down, up, &gradient)?;
            let like = |values: Vec<T>, tensor: &Tensor| Tensor::from_vec(values, tensor.shape(), x.device());
            let of_x = match x.track_op() {
                true => Some(like(of_x, x)?),
                false => None,
            };
            Ok((of_x, Some(like(of_down, down)?), Some(like(of_up, up)?)))
        })
    }
}

impl Adapted {
    fn output<T: Element>(&self, x: &[T], down: &[T], up: &[T]) -> Result<Vec<T>> {
        let (out, width) = self.weight.dims2()?;
        let rank = down.len() / width;
        let weight = Elements::<T>::of(&self.weight)?;
        let mut output = product(x, &weight, width, self.bias.as_ref())?;
        let low = self.low(x, down, width);
        let up = Matrix::strided(up, out, rank, rank).t();
        multiply(
            &mut output,
            out,
            T::one(),
            Matrix::new(&low, rank),
            up,
            constant(self.scale),
        );
        Ok(output)
    }

    /// The adapter's inner rows, `dropped x · downᵀ`.
    fn low<T: Element>(&self, x: &[T], down: &[T], width: usize) -> Vec<T> {
        let rank = down.len() / width;
        let mut low = vec![T::zero(); x.len() / width * rank];
        let dropped = self.dropout.as_ref().map(|dropout| dropout.apply(x));
        let x = Matrix::new(dropped.as_deref().unwrap_or(x), width);
        multiply(
            &mut low,
            rank,
            T::zero(),
            x,
            Matrix::new(down, width).t(),
            T::one(),
        );
        low
    }

    /// The gradients of `x` (empty where nobody wants it), `down` and `up`.
    fn gradients<T: Element>(
        &self,
        x: &Tensor,
        down: &Tensor,
        up: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Vec<T>; 3]> {
        let (out, width) = self.weight.dims2()?;
        let rank = down.dim(0)?;
        let of_x_wanted = x.track_op();
        let (x, down, up) = (
            Elements::<T>::of(x)?,
            Elements::<T>::of(down)?,
            Elements::<T>::of(up)?,
        );
        let gradient_values = Elements::<T>::of(gradient)?;
        let gradient_rows = Matrix::new(&gradient_values, out);
        let scale = constant::<T>(self.scale);

        let low = self.low(&x, &down, width);
        let mut of_up = vec![T::zero(); out * rank];
        multiply(
            &mut of_up,
            rank,
            T::zero(),
            gradient_rows.t(),
            Matrix::new(&low, rank),
            scale,
        );

        let mut of_low = low;
        multiply(
            &mut of_low,
            rank,
            T::zero(),
            gradient_rows,
            Matrix::strided(&up, out, rank, rank),
            scale,
        );
        let of_low = Matrix::new(&of_low, rank);
        let dropped = self.dropout.as_ref().map(|dropout| dropout.apply(&x));
        let mut of_down = vec![T::zero(); rank * width];
        let input = Matrix::new(dropped.as_deref().unwrap_or(&x), width);
        multiply(&mut of_down, width, T::zero(), of_low.t(), input, T::one());
        if !of_x_wanted {
            return Ok([Vec::new(), of_down, of_up]);
        }

        let mut of_x = vec![T::zero(); x.len()];
        let down = Matrix::new(&down, width);
        multiply(&mut of_x, width, T::zero(), of_low, down, T::one());
        if let Some(dropout) = &self.dropout {
            dropout.apply_in_place(&mut of_x);
        }
        let weight = Elements::of(&self.weight)?;
        multiply(
            &mut of_x,
            width,
            T::one(),
            gradient_rows,
            Matrix::new(&weight, width),
            T::one(),
        );
        Ok([of_x, of_down, of_up])
    }
}
