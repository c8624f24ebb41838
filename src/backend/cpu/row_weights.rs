//! BEAR's row weights, and the selection of the B-th largest score that they need.

use super::element::Real;
use super::softmax::RowSoftmax;
use super::vector;
use crate::Bear;
use crate::backend::batch::{Batch, BatchRow};

/// Computes BEAR's weights of the rows of a batch, and reuses its memory from row to row.
pub(super) struct RowWeights<R> {
    bear: Option<Bear>,
    largest: Largest<R>,
}

impl<R: Real> RowWeights<R> {
    pub fn new(batch: &Batch) -> Self {
        Self {
            bear: batch.bear,
            largest: Largest::default(),
        }
    }

    /// Returns BEAR's weight of a row with these scores, and 1 without BEAR.
    pub fn weight(&mut self, row: &BatchRow, scores: &[R], temperature: f64) -> f64 {
        match self.bear {
            Some(bear) if row.has_loss() => {
                self.largest.reset(bear.beams, scores.len());
                self.largest.add(scores);
                let target = scores[row.rank as usize].into();
                bear.weight(target, self.largest.last().into(), temperature)
            }
            _ => 1.0,
        }
    }
}

/// Divides BEAR's weights by the sum of the weighted loss weights, if the reduction is a mean of row weights. Returns the sum
/// over the branching rows of BEAR's weight times the caller's, and `None` without BEAR.
pub(crate) fn normalise(batch: &Batch, softmaxes: &mut [RowSoftmax]) -> Option<f64> {
    let bear = batch.bear?;
    let rows = batch.rows.iter().zip(&*softmaxes);
    // `sum` is not used, because it gives −0 for no row. A row without a loss has loss weight 0.
    let weights = rows.fold(0.0, |sum, (row, softmax)| {
        sum + row.loss_weight * softmax.weight()
    });
    if let (Some(unary), true) = (batch.unary_loss_weight, weights > 0.0) {
        let all = weights + unary * bear.weight_of_a_tie();
        softmaxes
            .iter_mut()
            .for_each(|softmax| softmax.divide_weight(all));
    }
    Some(weights * batch.denominator)
}

/// A selection of the largest scores of a row, which may be added in chunks.
pub(super) struct Largest<R> {
    /// The number of scores to select, which is at most the number of scores of the row.
    count: usize,
    /// Whether all scores are selected, so that the last of them is the smallest.
    all: bool,
    /// The largest scores so far, and some smaller ones. Scores of −∞ are not kept: if fewer than `count` are kept, the rest
    /// are −∞.
    kept: Vec<R>,
    /// A lower bound of the largest scores. If all are selected, the smallest score so far.
    bound: R,
}

impl<R: Real> Default for Largest<R> {
    fn default() -> Self {
        Self {
            count: 0,
            all: true,
            kept: Vec::new(),
            bound: R::INFINITY,
        }
    }
}

impl<R: Real> Largest<R> {
    /// The number of scores that are compared with the bound at a time.
    const CHUNK: usize = 64;

    pub fn new(beams: u32, size: usize) -> Self {
        let mut largest = Self::default();
        largest.reset(beams, size);
        largest
    }

    /// Starts a new row of `size` scores, of which the `beams` largest are selected.
    fn reset(&mut self, beams: u32, size: usize) {
        self.count = size.min(beams as usize);
        self.all = self.count == size;
        self.kept.clear();
        self.bound = match self.all {
            true => R::INFINITY,
            false => R::NEG_INFINITY,
        };
    }

    pub fn add(&mut self, scores: &[R]) {
        if self.all {
            self.bound = vector::minimum(scores, self.bound);
            return;
        }
        for chunk in scores.chunks(Self::CHUNK) {
            if vector::any_above(chunk, self.bound) {
                self.add_chunk(chunk);
            }
        }
    }

    fn add_chunk(&mut self, chunk: &[R]) {
        // A selection removes at least half of a full buffer, so that its amortised cost does not depend on `count`.
        let full = (2 * self.count).max(Self::CHUNK);
        for &score in chunk {
            if score > self.bound {
                self.kept.push(score);
                if self.kept.len() == full {
                    self.bound = self.select();
                }
            }
        }
    }

    /// Returns the `count`-th largest of the kept scores, and removes the smaller ones.
    fn select(&mut self) -> R {
        let descending = |a: &R, b: &R| b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal);
        let (_, &mut last, _) = (self.kept).select_nth_unstable_by(self.count - 1, descending);
        self.kept.truncate(self.count);
        last
    }

    /// Returns the smallest of the selected scores. NaN counts as −∞.
    pub fn last(&mut self) -> R {
        match self.all {
            true => self.bound,
            false if self.kept.len() < self.count => R::NEG_INFINITY,
            false => self.select(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the expected score by the definition.
    fn expected(scores: &[f32], beams: u32) -> f32 {
        let mut sorted = scores.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted[sorted.len().min(beams as usize) - 1]
    }

    #[test]
    fn the_last_of_the_largest_is_that_of_the_sorted_scores() {
        let scattered = |index: usize| ((index * 7919) % 1009) as f32 - 500.0;
        let orders: [fn(usize) -> f32; 5] = [
            |index| ((index * 7919) % 1009) as f32 - 500.0,
            |index| index as f32,
            |index| -(index as f32),
            |index| (index % 3) as f32,
            |index| {
                if index % 4 == 0 {
                    index as f32
                } else {
                    f32::NEG_INFINITY
                }
            },
        ];
        for size in [1, 2, 9, 10, 11, 63, 64, 65, 300, 2000] {
            for order in orders {
                let scores: Vec<f32> = (0..size).map(order).collect();
                for beams in [1, 2, 3, 10, 64, 100, 1999, u32::MAX] {
                    for piece in [size, 1, 7, 128] {
                        let mut largest = Largest::new(beams, size);
                        scores.chunks(piece).for_each(|piece| largest.add(piece));
                        assert_eq!(
                            largest.last(),
                            expected(&scores, beams),
                            "{beams} of {size}, {piece} at a time"
                        );
                    }
                }
            }
        }
        let mut one_after_another = Largest::new(3, 5);
        one_after_another.add(&[9.0, 8.0, 7.0, 6.0, 5.0]);
        one_after_another.reset(2, 100);
        let scores: Vec<f32> = (0..100).map(scattered).collect();
        one_after_another.add(&scores);
        assert_eq!(one_after_another.last(), expected(&scores, 2));
    }

    #[test]
    fn scores_that_are_no_numbers_do_not_stop_the_selection() {
        let mut scores = vec![f32::NAN; 300];
        (scores[7], scores[200]) = (2.0, 1.0);
        for (beams, expected) in [(1, 2.0), (2, 1.0), (3, f32::NEG_INFINITY), (300, 1.0)] {
            let mut largest = Largest::new(beams, scores.len());
            largest.add(&scores);
            assert_eq!(largest.last(), expected);
        }
    }
}
