//! The least that the linear operation and its parts must move and compute.

use std::collections::HashSet;

use candle_core::Tensor;
use candle_trie::launch::LinearRows;

use super::launches::Part;
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
    /// Head rows that any row needs, each once.
    head_rows: usize,
    /// Rows of groups, their head rows, each once a set, and their scores.
    grouped: usize,
    group_tokens: usize,
    group_scores: usize,
    /// Head rows that are gathered for the batch.
    gathered: usize,
    /// The other rows, their head rows, each once, and their scores.
    ragged: usize,
    ragged_head_rows: usize,
    ragged_scores: usize,
}

impl Counts {
    pub fn of(shape: &Shape, rows: &LinearRows, hidden: &Tensor) -> Self {
        let groups: HashSet<u32> = rows.grouped_sets().collect();
        let branching = (shape.rows.as_slice().iter())
            .map(|row| row.set)
            .filter(|&set| shape.set_size(set) > 1);
        let (grouped, ragged): (Vec<u32>, Vec<u32>) =
            branching.partition(|set| groups.contains(set));
        let scores = |sets: &[u32]| sets.iter().map(|&set| shape.set_size(set)).sum();
        let ragged_head_rows: HashSet<u32> = (ragged.iter())
            .filter_map(|&set| shape.sets.get(set))
            .flat_map(|set| set.iter())
            .collect();
        Self {
            width: hidden.elem_count() / shape.rows.positions(),
            element_bytes: hidden.dtype().size_in_bytes(),
            positions: shape.rows.positions(),
            head_rows: shape.distinct_tokens().len(),
            grouped: grouped.len(),
            group_tokens: groups.iter().map(|&set| shape.set_size(set)).sum(),
            group_scores: scores(&grouped),
            gathered: rows.gathered_head_rows(),
            ragged: ragged.len(),
            ragged_head_rows: ragged_head_rows.len(),
            ragged_scores: scores(&ragged),
        }
    }

    /// Of loss and hidden gradient: two products.
    pub fn whole(&self) -> Work {
        let vectors = self.head_rows + self.grouped + self.ragged + self.positions;
        self.work(vectors, 0, 0, 2 * (self.group_scores + self.ragged_scores))
    }

    /// Scores are f32, errors of the type of the head, unscaled gradients f32.
    pub fn of_part(&self, part: Part) -> Work {
        let ragged = self.ragged + self.ragged_head_rows;
        let errors = self.group_scores * self.element_bytes;
        let scores = self.group_scores * size_of::<f32>();
        match part {
            Part::Gather => self.work(2 * (self.grouped + self.gathered), 0, 0, 0),
            Part::Scores => {
                let vectors = self.grouped + self.group_tokens;
                self.work(vectors, 0, scores, self.group_scores)
            }
            Part::Statistics => self.work(ragged, 0, scores, self.ragged_scores),
            Part::Forward => {
                self.work(ragged, self.ragged, scores + errors, 2 * self.ragged_scores)
            }
            Part::Gradients => {
                self.work(self.group_tokens, self.grouped, errors, self.group_scores)
            }
            Part::Backward => self.work(self.positions, self.grouped + self.ragged, 0, 0),
        }
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
