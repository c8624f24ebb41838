//! Chooses the examples of every step.

use rand::seq::SliceRandom;

use crate::{
    data::examples::Example,
    random::{Purpose, random_at},
    train::settings::TrainingSettings,
};

/// The batches of a training. They are drawn at random, because a batch of examples of like lengths would be one of
/// like examples. Inside a batch examples are sorted by length, so that a micro-batch needs little padding. The batches
/// of an epoch depend on the seed and the epoch alone, so that a run can continue from any step.
pub struct Schedule {
    seed: u64,
    epochs: usize,
    batch_size: usize,
    lengths: Vec<usize>,
}

impl Schedule {
    /// Builds the schedule of these examples.
    pub fn new(settings: &TrainingSettings, examples: &[Example]) -> Self {
        Self {
            seed: settings.seed,
            epochs: settings.epochs,
            batch_size: settings.batch_size,
            // Of the prompt alone: the same batches, however far into the responses a model reads.
            lengths: examples
                .iter()
                .map(|example| example.prompt.len())
                .collect(),
        }
    }

    /// Returns the number of steps in an epoch.
    pub fn steps_of_an_epoch(&self) -> usize {
        self.lengths.len().div_ceil(self.batch_size)
    }

    /// Returns the number of steps of all epochs.
    pub fn steps(&self) -> usize {
        self.epochs.saturating_mul(self.steps_of_an_epoch())
    }

    /// Returns the indices of the examples of every step from `first` on, which counts from 0. In a batch the longest
    /// come first.
    pub fn batches_from(&self, first: usize) -> impl Iterator<Item = Vec<usize>> + '_ {
        let each = self.steps_of_an_epoch().max(1);
        (first / each..self.epochs)
            .flat_map(|epoch| self.epoch(epoch))
            .skip(first % each)
    }

    fn epoch(&self, epoch: usize) -> Vec<Vec<usize>> {
        let mut random = random_at(self.seed, Purpose::Order, epoch as u64);
        let mut order: Vec<usize> = (0..self.lengths.len()).collect();
        order.shuffle(&mut random);
        for batch in order.chunks_mut(self.batch_size) {
            batch.sort_by_key(|&example| std::cmp::Reverse(self.lengths[example]));
        }
        order
            .chunks(self.batch_size)
            .map(<[usize]>::to_vec)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(seed: u64) -> Schedule {
        Schedule {
            seed,
            epochs: 3,
            batch_size: 4,
            lengths: (0..101).map(|example| 10 + example * 37 % 101).collect(),
        }
    }

    #[test]
    fn every_epoch_takes_every_example_once_in_another_order() {
        let schedule = schedule(1);
        let batches: Vec<Vec<usize>> = schedule.batches_from(0).collect();
        assert_eq!((schedule.steps(), batches.len()), (78, 78));
        let epochs: Vec<Vec<usize>> = batches.chunks(26).map(<[_]>::concat).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..101).collect::<Vec<_>>());
        }
        assert_ne!(epochs[0], epochs[1]);
        let other: Vec<Vec<usize>> = self::schedule(2).batches_from(0).collect();
        assert_ne!(batches, other);
    }

    #[test]
    fn steps_beyond_all_numbers_are_as_many_as_there_are() {
        let schedule = Schedule {
            epochs: usize::MAX,
            ..schedule(1)
        };
        assert_eq!(schedule.steps(), usize::MAX);
    }

    #[test]
    fn a_run_that_goes_on_sees_what_it_would_have_seen() {
        let all: Vec<Vec<usize>> = schedule(1).batches_from(0).collect();
        for first in [1, 25, 26, 27, 77, 78] {
            let rest: Vec<Vec<usize>> = schedule(1).batches_from(first).collect();
            assert_eq!(rest, all[first..]);
        }
    }

    #[test]
    fn a_batch_begins_with_its_longest_examples() {
        let schedule = schedule(1);
        for batch in schedule.batches_from(0) {
            assert!(
                batch.is_sorted_by_key(|&example| std::cmp::Reverse(schedule.lengths[example]))
            );
        }
    }
}
