//! The rows of a batch in the order that the kernels over hidden states require: sorted by token set.

use std::collections::HashMap;

use super::params::LinearRow;
use crate::backend::batch::{Batch, BatchRow};
use crate::backend::launch::BatchTotals;
use crate::{TokenSet, TokenSets};

/// The rows of one token set, and of other sets with the same tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct SetRows {
    /// The index of the set's first token among the tokens of all sets; 0 for the whole vocabulary.
    pub first_token: u32,
    /// The number of its tokens.
    pub tokens: u32,
    /// The index of its first row in the batch.
    pub first_row: u32,
    /// The number of its rows.
    pub rows: u32,
    /// Whether any of its rows has a loss.
    pub has_loss: bool,
}

/// The rows of a batch in the order that the kernels over hidden states require: sorted by token set.
///
/// [`MaskedSoftmaxLoss::linear_rows`](crate::MaskedSoftmaxLoss::linear_rows) makes them.
#[derive(Debug, Clone)]
pub struct LinearRows {
    pub(super) rows: Vec<LinearRow>,
    pub(super) sets: Vec<SetRows>,
    /// The positions without a row, ascending.
    pub(super) ignored: Vec<u32>,
    /// Whether the token set of every row is the whole vocabulary.
    pub(super) is_whole_vocabulary: bool,
    /// The properties of the batch as a whole.
    pub totals: BatchTotals,
}

impl LinearRows {
    pub(crate) fn new(batch: &Batch) -> Self {
        let offsets = batch.sets.as_raw().map(|(offsets, _)| offsets);
        let named = batch.rows.iter().map(|row| row.set);
        let same = same_sets(&batch.sets, named.collect());
        // All sets are the same if they are the whole vocabulary.
        let set = |row: &BatchRow| same.get(&row.set).copied().unwrap_or(0);
        let mut by_set: Vec<(u32, &BatchRow)> =
            batch.rows.iter().map(|row| (set(row), row)).collect();
        by_set.sort_by_key(|&(set, _)| set);
        let mut rows = Vec::with_capacity(by_set.len());
        let mut sets = Vec::new();
        for of_set in by_set.chunk_by(|a, b| a.0 == b.0) {
            let (set, row) = of_set[0];
            sets.push(SetRows {
                first_token: offsets.map_or(0, |offsets| offsets[set as usize]),
                tokens: batch.size(row) as u32,
                first_row: rows.len() as u32,
                rows: of_set.len() as u32,
                has_loss: of_set.iter().any(|(_, row)| row.has_loss()),
            });
            let group = sets.len() as u32 - 1;
            rows.extend(of_set.iter().map(|(_, row)| linear_row(row, group)));
        }
        Self {
            rows,
            sets,
            ignored: batch.ignored(),
            is_whole_vocabulary: offsets.is_none(),
            totals: BatchTotals::new(batch),
        }
    }
}

/// Returns for each of these listed sets the first of them that has the same tokens.
///
/// A trie has a set for every node, and nodes often have the same children: in a catalogue of semantic IDs, all nodes of the
/// upper levels. Their rows are multiplied by the same head rows, which are loaded once where they are one group.
fn same_sets(sets: &TokenSets, mut named: Vec<u32>) -> HashMap<u32, u32> {
    named.sort_unstable();
    named.dedup();
    let tokens = |set: u32| match sets.get(set) {
        Some(TokenSet::Listed(tokens)) => Some(tokens),
        _ => None,
    };
    let mut same = HashMap::with_capacity(named.len());
    // Only sets of the same size, first token and last token are compared.
    let mut alike: HashMap<_, Vec<u32>> = HashMap::new();
    for set in named {
        let Some(of_set) = tokens(set) else { continue };
        let alike = (alike.entry((of_set.len(), of_set.first(), of_set.last()))).or_default();
        let first = (alike.iter().copied()).find(|&other| tokens(other) == Some(of_set));
        same.insert(set, first.unwrap_or(set));
        if first.is_none() {
            alike.push(set);
        }
    }
    same
}

fn linear_row(row: &BatchRow, group: u32) -> LinearRow {
    // A loss weight of 0 means that a row has no loss, so it must not round to 0.
    let least = if row.has_loss() {
        f32::MIN_POSITIVE
    } else {
        0.0
    };
    LinearRow {
        position: row.position,
        group,
        rank: row.rank,
        loss_weight: (row.loss_weight as f32).max(least),
        in_statistics: row.in_statistics.into(),
        maximum: 0,
        unused: [0; 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::batch::Denominator;
    use crate::{Row, Rows, TokenSets};

    #[test]
    fn rows_of_sets_with_the_same_tokens_are_one_group() {
        let sets = TokenSets::from_raw(vec![0, 2, 4, 6, 8], vec![1, 5, 1, 6, 1, 5, 2, 5]).unwrap();
        let row = |(position, set, target)| Row {
            position,
            set,
            target,
        };
        let rows = [(0, 2, 5), (1, 1, 6), (2, 0, 1), (3, 3, 2), (4, 2, 1)].map(row);
        let rows = Rows::from_raw(5, rows.to_vec()).unwrap();
        let batch = Batch::new(&sets, &rows, None, Denominator::Given(1.0)).unwrap();
        let rows = LinearRows::new(&batch);
        let groups: Vec<_> = (rows.sets.iter())
            .map(|set| (set.first_token, set.first_row, set.rows))
            .collect();
        assert_eq!(groups, [(0, 0, 3), (2, 3, 1), (6, 4, 1)]);
        let ordered: Vec<_> = (rows.rows.iter())
            .map(|row| (row.position, row.group, row.rank))
            .collect();
        let expected = [(0, 0, 1), (2, 0, 0), (4, 0, 0), (1, 1, 1), (3, 2, 0)];
        assert_eq!(ordered, expected);
    }

    /// The kernels take a row whose loss weight is 0 for one without a loss, which has no gradient.
    #[test]
    fn a_loss_weight_that_is_too_small_for_f32_does_not_become_0() {
        let sets = TokenSets::from_raw(vec![0, 2], vec![0, 1]).unwrap();
        let row = |position| Row {
            position,
            set: 0,
            target: 1,
        };
        let rows = Rows::from_raw(4, vec![row(1), row(2)]).unwrap();
        let batch = Batch::new(&sets, &rows, None, Denominator::Given(1e60)).unwrap();
        let rows = LinearRows::new(&batch);
        assert!(rows.rows.iter().all(|row| row.loss_weight > 0.0));
        assert_eq!(rows.ignored, [0, 3]);
        assert_eq!(rows.totals.positions(), 4);
    }
}
