//! Adds up the gradients of all trained weights over the pieces of a step.

use anyhow::{Context, Result};
use candle_core::{DType, Tensor, Var, backprop::GradStore};

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
