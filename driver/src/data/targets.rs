//! Tells targets that occur in training rows from others, of which a model from scratch can know nothing.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::data::catalogue::Interaction;

/// A pair of values: for targets that occur in a training row, as its target or in its history, and for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByOccurrence<T> {
    /// The value for targets that occur in a training row.
    pub in_training: T,
    /// The value for targets that occur in none.
    pub not_in_training: T,
}

impl<T> ByOccurrence<T> {
    /// Applies a function to both.
    pub fn map<U>(self, function: impl Fn(T) -> U) -> ByOccurrence<U> {
        ByOccurrence {
            in_training: function(self.in_training),
            not_in_training: function(self.not_in_training),
        }
    }

    /// Returns both with their names in tables.
    pub fn named(&self) -> [(&'static str, &T); 2] {
        [
            ("in training", &self.in_training),
            ("not in training", &self.not_in_training),
        ]
    }
}

/// The targets of the rows of an evaluation.
pub struct Targets {
    in_training: Vec<bool>,
}

impl Targets {
    /// Looks for the targets of `rows` in the training rows.
    pub fn new(training: &[Interaction], rows: &[Interaction]) -> Self {
        let items: HashSet<_> = (training.iter())
            .flat_map(|row| row.history.iter().chain([&row.target]))
            .collect();
        Self {
            in_training: (rows.iter())
                .map(|row| items.contains(&row.target))
                .collect(),
        }
    }

    /// Splits the values of the rows by the kind of their targets.
    pub fn tell_apart<T: Copy>(&self, values: &[T]) -> ByOccurrence<Vec<T>> {
        let of_kind = |kind: bool| {
            let values = values.iter().zip(&self.in_training);
            values
                .filter_map(|(value, in_training)| (*in_training == kind).then_some(*value))
                .collect()
        };
        ByOccurrence {
            in_training: of_kind(true),
            not_in_training: of_kind(false),
        }
    }

    /// Returns how many targets of each kind there are.
    pub fn counts(&self) -> ByOccurrence<usize> {
        self.tell_apart(&self.in_training).map(|kind| kind.len())
    }
}

impl ByOccurrence<usize> {
    /// Returns a sentence on how many targets of each kind there are.
    pub fn sentence(&self) -> String {
        let (known, unknown) = (self.in_training, self.not_in_training);
        let all = self.all();
        format!(
            "Of the {all} items that came next, {known} occur in a training row, as its target or in its history, and \
             {unknown} ({:.1} %) in none.",
            self.percent_unknown()
        )
    }

    /// Returns the share of targets that occur in no training row, in %.
    pub fn percent_unknown(&self) -> f64 {
        100.0 * self.not_in_training as f64 / self.all().max(1) as f64
    }

    /// Returns the number of all targets. Counts from a file may be too large to add.
    fn all(&self) -> usize {
        self.in_training.saturating_add(self.not_in_training)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(history: &[u64], target: u64) -> Interaction {
        Interaction::of("u", history, target)
    }

    #[test]
    fn counts_of_a_file_that_are_too_large_to_add_are_described_all_the_same() {
        let counts = ByOccurrence {
            in_training: usize::MAX,
            not_in_training: 1,
        };
        assert!(counts.sentence().contains("1 (0.0 %) in none"));
    }

    #[test]
    fn an_item_occurs_in_training_rows_as_a_target_or_in_a_history() {
        let training = [row(&[1, 2], 3), row(&[2], 1)];
        // An item of the test row's own history is no training row.
        let test = [3, 2, 4, 5].map(|target| row(&[4], target));
        let targets = Targets::new(&training, &test);
        let expected = ByOccurrence {
            in_training: vec!["a", "b"],
            not_in_training: vec!["c", "d"],
        };
        assert_eq!(targets.tell_apart(&["a", "b", "c", "d"]), expected);
        assert_eq!(targets.counts(), expected.map(|kind| kind.len()));
        let none = Targets::new(&[], &test).counts();
        assert_eq!((none.in_training, none.not_in_training), (0, 4));
    }
}
