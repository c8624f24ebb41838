//! The gradient of everything that is trained, added up over the pieces of a step.

use anyhow::{Context, Result};
use candle_core::{DType, Tensor, Var, backprop::GradStore};

/// One gradient for each weight, in the order of the weights.
pub struct Gradients<'a> {
    weights: &'a [(String, Var)],
    sums: Vec<Option<Tensor>>,
    /// How much too long all of them are.
    scale: f64,
}

impl<'a> Gradients<'a> {
    /// No gradient yet, of a loss that is multiplied by `scale` before it goes back.
    pub fn of(weights: &'a [(String, Var)], scale: f64) -> Self {
        Self {
            weights,
            sums: vec![None; weights.len()],
            scale,
        }
    }

    /// What the loss is multiplied by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Divides all of them, those that were added already.
    pub fn divide(&mut self, by: f64) {
        self.scale *= by;
    }

    /// Adds those of one piece. Sums depend on the order in which pieces are added, in their last bits.
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

    /// The sums, shortened together to a norm where they are longer, and the norm that they had.
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
