//! Adds up the gradients of all trained weights over the pieces of a step.

use anyhow::{Context, Result};
use candle_core::{DType, Tensor, Var, backprop::GradStore};

use crate::exchange::Exchange;

/// One gradient for each weight, in the order of the weights.
pub struct Gradients<'a> {
    weights: &'a [(String, Var)],
    sums: Vec<Option<Tensor>>,
    /// The factor by which all of them are too long.
    scale: f64,
}

impl<'a> Gradients<'a> {
    /// Begins with no gradient. The loss is multiplied by `scale` before it is differentiated.
    pub fn of(weights: &'a [(String, Var)], scale: f64) -> Self {
        Self {
            weights,
            sums: vec![None; weights.len()],
            scale,
        }
    }

    /// Returns the factor of the loss.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Divides all gradients that were added so far.
    pub fn divide(&mut self, by: f64) {
        self.scale *= by;
    }

    /// Adds the gradients of one piece. The last bits of the sums depend on the order of the pieces.
    pub fn add(&mut self, piece: &GradStore) -> Result<()> {
        for (sum, (_, weight)) in self.sums.iter_mut().zip(self.weights) {
            if let Some(gradient) = piece.get(weight) {
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + gradient)?,
                    None => gradient.clone(),
                });
            }
        }
        Ok(())
    }

    /// Adds up those of all ranks. Only here are they one buffer, in f32 or f64.
    ///
    /// # Errors
    /// Where no rank has a gradient of some weight, and what candle reports.
    pub fn of_all_ranks(mut self, exchange: &dyn Exchange) -> Result<Self> {
        if exchange.size() == 1 {
            return Ok(self);
        }
        let flat = |(sum, (_, weight)): (&Option<Tensor>, &(String, Var))| {
            let dtype = match weight.dtype() {
                DType::F64 => DType::F64,
                _ => DType::F32,
            };
            match sum {
                Some(sum) => sum.to_dtype(dtype)?.flatten_all(),
                // A rank without rows.
                None => Tensor::zeros(weight.elem_count(), dtype, weight.device()),
            }
        };
        let parts = self.sums.iter().zip(self.weights).map(flat);
        let parts = parts.collect::<candle_core::Result<Vec<_>>>()?;
        let sums = exchange.sum(&Tensor::cat(&parts, 0)?)?;
        let mut first = 0;
        for (sum, (_, weight)) in self.sums.iter_mut().zip(self.weights) {
            let part = sums.narrow(0, first, weight.elem_count())?;
            *sum = Some(part.to_dtype(weight.dtype())?.reshape(weight.shape())?);
            first += weight.elem_count();
        }
        Ok(self)
    }

    /// Returns the sums, scaled down to the norm `longest` where theirs is larger, and the norm that they had.
    pub fn clipped(self, longest: f64) -> Result<(Vec<Tensor>, f64)> {
        let mut gradients = Vec::with_capacity(self.sums.len());
        let mut squares = 0.0;
        for (sum, (name, _)) in self.sums.into_iter().zip(self.weights) {
            let gradient = sum.with_context(|| format!("{name} has no gradient"))?;
            let square = gradient.sqr()?.sum_all()?.to_dtype(DType::F64)?;
            squares += square.to_scalar::<f64>()?;
            gradients.push(gradient);
        }
        let norm = squares.sqrt() / self.scale;
        let shortened = if norm > longest { longest / norm } else { 1.0 };
        let factor = shortened / self.scale;
        if factor != 1.0 {
            for gradient in &mut gradients {
                *gradient = (&*gradient * factor)?;
            }
        }
        Ok((gradients, norm))
    }
}
