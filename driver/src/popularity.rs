//! The baseline that reads no history: what others chose most.

use std::{cmp::Reverse, collections::HashMap};

use anyhow::Result;

use crate::{catalogue::Interaction, ranking::UserResult, responses::Responses};

/// How popularity does with each user. Its item NLL is −ln((n + 1) / (N + L)) for a title chosen n times among N choices
/// of L titles: the one that is added keeps a title that nobody has chosen possible.
pub fn popularity(
    training: &[Interaction],
    test: &[Interaction],
    responses: &Responses,
) -> Result<Vec<UserResult>> {
    let trie = responses.trie();
    let mut counts: HashMap<u32, usize> = trie.leaves().map(|(leaf, _)| (leaf, 0)).collect();
    for interaction in training {
        *counts
            .entry(responses.leaf(interaction.target)?)
            .or_default() += 1;
    }
    let mut order: Vec<u32> = counts.keys().copied().collect();
    order.sort_by_key(|leaf| (Reverse(counts[leaf]), trie.items(*leaf).first().copied()));
    let places: HashMap<u32, usize> = (order.into_iter().enumerate())
        .map(|(place, leaf)| (leaf, place))
        .collect();
    let total = (training.len() + counts.len()) as f64;
    let result = |interaction: &Interaction| {
        let leaf = responses.leaf(interaction.target)?;
        Ok(UserResult {
            place: places.get(&leaf).copied(),
            item_nll: -((counts[&leaf] + 1) as f64 / total).ln(),
        })
    };
    test.iter().map(result).collect()
}
