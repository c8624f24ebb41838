//! Measures a catalogue as the losses see it: the trie of its tokenized titles.

use std::iter::successors;

use anyhow::Result;
use candle_trie::TokenTrie;
use serde::Serialize;

use crate::data::{catalogue::Interaction, responses::Responses};

/// Sizes of the trie, and of the sets that the rows of given responses meet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CatalogueShape {
    /// Number of items.
    pub items: usize,
    /// Number of different titles in tokens. Items with one title cannot be told apart.
    pub titles: usize,
    /// Number of nodes of the trie.
    pub nodes: usize,
    /// Number of branching nodes, which have more than one child.
    pub branching_nodes: usize,
    /// Number of tokens of the longest title, with the end token.
    pub depth: usize,
    /// Number of tokens that a title can begin with.
    pub root_fan_out: usize,
    /// The largest numbers of children of one node.
    pub largest_fan_outs: Vec<usize>,
    /// Number of labelled rows of the responses.
    pub rows: usize,
    /// Share of these rows that are unary: one token is valid.
    pub unary_share: f64,
    /// Number of valid tokens, summed over all rows.
    pub valid_logits: usize,
    /// Mean of ln n over the branching rows, with n the number of valid tokens.
    pub mean_log_fan_out: f64,
    /// The rows by their position in the response.
    pub positions: Vec<Position>,
}

/// The rows at one position of the responses.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Position {
    /// Number of responses that are that long.
    pub rows: usize,
    /// Mean number of valid tokens.
    pub mean_fan_out: f64,
    /// Share of these rows that are unary.
    pub unary_share: f64,
}

/// How many of the largest fan-outs are kept.
const LARGEST: usize = 5;

impl CatalogueShape {
    /// Measures a catalogue along the titles of the targets of these rows.
    pub fn new(responses: &Responses, rows: &[Interaction]) -> Result<Self> {
        let leaves = rows.iter().map(|row| responses.leaf(row.target));
        Ok(Self::of(
            responses.trie(),
            &leaves.collect::<Result<Vec<_>>>()?,
        ))
    }

    /// Measures a catalogue along every title once.
    pub fn of_titles(trie: &TokenTrie) -> Self {
        let leaves: Vec<u32> = trie.leaves().map(|(leaf, _)| leaf).collect();
        Self::of(trie, &leaves)
    }

    fn of(trie: &TokenTrie, leaves: &[u32]) -> Self {
        let depths = trie.leaves().map(|(leaf, _)| ancestors(trie, leaf).count());
        let mut shape = Self {
            items: trie.item_count(),
            titles: trie.leaf_count(),
            nodes: trie.node_count(),
            branching_nodes: trie.branching_count(),
            depth: depths.max().unwrap_or(0),
            root_fan_out: trie.children(trie.root()).len(),
            largest_fan_outs: largest_fan_outs(trie),
            rows: 0,
            unary_share: 0.0,
            valid_logits: 0,
            mean_log_fan_out: 0.0,
            positions: Vec::new(),
        };
        let mut unary: Vec<usize> = Vec::new();
        let mut log_fan_outs = 0.0;
        for &leaf in leaves {
            let mut fan_outs: Vec<usize> = ancestors(trie, leaf)
                .map(|node| trie.children(node).len())
                .collect();
            fan_outs.reverse();
            for (place, fan_out) in fan_outs.into_iter().enumerate() {
                if shape.positions.len() == place {
                    shape.positions.push(Position::default());
                    unary.push(0);
                }
                shape.positions[place].rows += 1;
                shape.positions[place].mean_fan_out += fan_out as f64;
                unary[place] += usize::from(fan_out == 1);
                shape.valid_logits += fan_out;
                log_fan_outs += (fan_out as f64).ln();
            }
        }
        for (position, &unary) in shape.positions.iter_mut().zip(&unary) {
            shape.rows += position.rows;
            position.mean_fan_out /= position.rows as f64;
            position.unary_share = unary as f64 / position.rows as f64;
        }
        let unary: usize = unary.iter().sum();
        shape.unary_share = unary as f64 / shape.rows.max(1) as f64;
        shape.mean_log_fan_out = log_fan_outs / (shape.rows - unary).max(1) as f64;
        shape
    }
}

/// Returns the nodes above a node, the root last.
fn ancestors(trie: &TokenTrie, node: u32) -> impl Iterator<Item = u32> + '_ {
    successors(trie.parent(node), |&node| trie.parent(node))
}

fn largest_fan_outs(trie: &TokenTrie) -> Vec<usize> {
    let mut fan_outs: Vec<usize> = (0..trie.node_count() as u32)
        .map(|node| trie.children(node).len())
        .collect();
    fan_outs.sort_unstable_by_key(|&fan_out| std::cmp::Reverse(fan_out));
    fan_outs.truncate(LARGEST);
    fan_outs
}

/// Whether the adaptive temperature is defined for a catalogue, scope by scope.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdaptiveVerdict {
    /// η: the probability that the average target is to have.
    pub eta: f64,
    /// η·n at the root.
    pub root_odds: f64,
    /// Whether the published root scope is defined: η·n is above 1.
    pub root_defined: bool,
    /// Whether η·n at the root is so close to 1 that the temperature stays at its upper bound.
    pub root_at_clamp: bool,
    /// Geometric mean of η·n over the branching rows.
    pub branching_odds: f64,
    /// Whether the branching scope moves the temperature: that mean is above 1.
    pub branching_defined: bool,
}

impl AdaptiveVerdict {
    /// Computes the verdict for η.
    pub fn new(shape: &CatalogueShape, eta: f64) -> Self {
        let root_odds = eta * shape.root_fan_out as f64;
        let branching_odds = eta * shape.mean_log_fan_out.exp();
        Self {
            eta,
            root_odds,
            root_defined: root_odds > 1.0,
            root_at_clamp: root_odds > 1.0 && root_odds < 2.0,
            branching_odds,
            branching_defined: branching_odds > 1.0,
        }
    }

    /// Returns in words which scope to use.
    pub fn advice(&self) -> String {
        let Self { eta, root_odds, .. } = self;
        let n = root_odds / eta;
        let root = if !self.root_defined {
            format!(
                "The published root scope of ats is not defined here: titles begin with one of {n:.0} tokens, and at \
                 η·n = {eta} × {n:.0} = {root_odds:.2} ≤ 1 no temperature gives the average target the probability η, \
                 because guessing already does."
            )
        } else if self.root_at_clamp {
            format!(
                "The root scope of ats is defined, but η·n = {eta} × {n:.0} = {root_odds:.2} is so close to 1 that \
                 the temperature will stay at its upper bound."
            )
        } else {
            format!("The root scope of ats is defined: η·n = {eta} × {n:.0} = {root_odds:.2} > 1.")
        };
        let choice = match (
            self.root_defined && !self.root_at_clamp,
            self.branching_defined,
        ) {
            (true, _) => "Use the default, --scope root.".to_owned(),
            (false, true) => format!(
                "Use --scope branching: over all branching rows η·n is {:.2} on (geometric) average.",
                self.branching_odds
            ),
            (false, false) => format!(
                "Over all branching rows η·n is {:.2} on (geometric) average, so --scope branching would not move \
                 the temperature either: raise --eta, or train with --loss msl at a fixed temperature.",
                self.branching_odds
            ),
        };
        format!("{root} {choice}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{catalogue::Catalogue, tokenizer::TextTokenizer};

    #[test]
    fn a_shape_counts_what_a_walk_over_the_responses_meets() {
        let titles = ["The Sea", "The Sea Wall", "A Glass", "A Glass"];
        let catalogue = Catalogue::of_titles(&titles).unwrap();
        let quoted: Vec<String> = titles.iter().map(|title| format!("\"{title}\"")).collect();
        let tokenizer = TextTokenizer::train(quoted.iter().map(String::as_str), 300).unwrap();
        let responses = Responses::new(&catalogue, &tokenizer).unwrap();
        let rows = [0, 1, 3].map(|target| Interaction::of("", &[0], target));
        let shape = CatalogueShape::new(&responses, &rows).unwrap();
        assert_eq!((shape.items, shape.titles), (4, 3));
        let trie = responses.trie();
        assert_eq!(shape.root_fan_out, trie.children(0).len());
        assert_eq!(shape.largest_fan_outs[0], 2);
        let lengths: Vec<usize> = [0, 1, 3]
            .map(|item| responses.path(item).unwrap().len())
            .into();
        assert_eq!(shape.depth, *lengths.iter().max().unwrap());
        assert_eq!(shape.rows, lengths.iter().sum::<usize>());
        assert_eq!(shape.positions[0].rows, 3);
        assert_eq!(shape.positions[0].mean_fan_out, shape.root_fan_out as f64);
        // All choices here are between two: rows + one more for each choice.
        let choices = (shape.rows as f64 * (1.0 - shape.unary_share)).round() as usize;
        assert_eq!(shape.valid_logits, shape.rows + choices);
        assert!((shape.mean_log_fan_out - 2f64.ln()).abs() < 1e-12);
        // The rows have every title once.
        assert_eq!(CatalogueShape::of_titles(trie), shape);
    }

    #[test]
    fn advice_names_the_scope_to_choose() {
        let shape = |root_fan_out, mean_log_fan_out| CatalogueShape {
            items: 0,
            titles: 0,
            nodes: 0,
            branching_nodes: 0,
            depth: 0,
            root_fan_out,
            largest_fan_outs: Vec::new(),
            rows: 0,
            unary_share: 0.0,
            valid_logits: 0,
            mean_log_fan_out,
            positions: Vec::new(),
        };
        let advice = |n, mean: f64| AdaptiveVerdict::new(&shape(n, mean), 0.25).advice();
        let undefined = advice(2, 4.0);
        assert!(
            undefined.contains("not defined") && undefined.contains("0.25 × 2 = 0.50"),
            "{undefined}"
        );
        assert!(undefined.contains("--scope branching"), "{undefined}");
        assert!(advice(5, 4.0).contains("upper bound"), "{}", advice(5, 4.0));
        assert!(advice(64, 4.0).contains("--scope root"));
        assert!(advice(4, 1.0).contains("--eta"), "{}", advice(4, 1.0));
    }
}
