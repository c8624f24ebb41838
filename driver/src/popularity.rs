//! The baseline that reads no history: what others chose most.

use std::collections::HashMap;

use anyhow::Result;

use crate::{catalogue::Interaction, ranking::Ranking, responses::Responses};

/// How well popularity ranks, and its item NLL: −ln((n + 1) / (N + L)) for a title chosen n times among N choices of L
/// titles. The one that is added keeps a title that nobody has chosen possible.
pub fn popularity(
    training: &[Interaction],
    test: &[Interaction],
    responses: &Responses,
) -> Result<(Ranking, f64)> {
    let mut counts: HashMap<u32, usize> = responses
        .trie()
        .leaves()
        .map(|(leaf, _)| (leaf, 0))
        .collect();
    for interaction in training {
        *counts
            .entry(responses.leaf(interaction.target)?)
            .or_default() += 1;
    }
    let mut order: Vec<u32> = counts.keys().copied().collect();
    order.sort_by_key(|leaf| {
        (
            std::cmp::Reverse(counts[leaf]),
            responses.trie().items(*leaf).first().copied(),
        )
    });
    let places: HashMap<u32, usize> = order
        .into_iter()
        .enumerate()
        .map(|(place, leaf)| (leaf, place))
        .collect();

    let targets = test
        .iter()
        .map(|interaction| responses.leaf(interaction.target))
        .collect::<Result<Vec<_>>>()?;
    let total = (training.len() + counts.len()) as f64;
    let likelihood = |leaf: &u32| ((counts[leaf] + 1) as f64 / total).ln();
    let item_nll = -targets.iter().map(likelihood).sum::<f64>() / targets.len().max(1) as f64;
    let places: Vec<Option<usize>> = targets
        .iter()
        .map(|leaf| places.get(leaf).copied())
        .collect();
    Ok((Ranking::of(&places), item_nll))
}
