//! The least that the linear operation and its kernels must move and compute.

use candle_core::Tensor;

use crate::support::Shape;

#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Each input read once and each output written once.
    pub bytes: f64,
    /// Multiplications and additions.
    pub operations: f64,
}

/// What a batch has of everything.
pub struct Counts {
    width: usize,
    element_bytes: usize,
    positions: usize,
    /// Rows whose sets have more than one token.
    branching: usize,
    /// Head rows that any of them needs, each once.
    head_rows: usize,
    /// Their valid logits.
    scores: usize,
}

impl Counts {
    pub fn of(shape: &Shape, hidden: &Tensor) -> Self {
        Self {
            width: hidden.elem_count() / shape.rows.positions(),
            element_bytes: hidden.dtype().size_in_bytes(),
            positions: shape.rows.positions(),
            branching: shape.branching_rows(),
            head_rows: shape.distinct_tokens().len(),
            scores: shape.branching_logits(),
        }
    }

    /// Of loss and hidden gradient: two products.
    pub fn whole(&self) -> Work {
        let vectors = self.head_rows + self.branching + self.positions;
        self.work(vectors, 0, 0, 2 * self.scores)
    }

    /// Of the forward pass before a backward pass: it leaves the unscaled gradient in f32.
    pub fn forward(&self) -> Work {
        let vectors = self.head_rows + self.branching;
        self.work(vectors, self.branching, 0, 2 * self.scores)
    }

    /// Of the backward pass to the hidden states.
    pub fn backward(&self) -> Work {
        self.work(self.positions, self.branching, 0, 0)
    }

    /// Of the head's gradient, in the rows that are used.
    pub fn head_gradient(&self) -> Work {
        let scores = self.scores * size_of::<f32>();
        self.work(self.branching + self.head_rows, 0, scores, self.scores)
    }

    /// So many vectors of the model's width, so many of unscaled gradients, other bytes, and scalar
    /// products of the model's width.
    fn work(&self, vectors: usize, unscaled: usize, bytes: usize, products: usize) -> Work {
        let of_vectors = vectors * self.element_bytes + unscaled * size_of::<f32>();
        Work {
            bytes: (of_vectors * self.width + bytes) as f64,
            operations: (2 * products * self.width) as f64,
        }
    }
}
