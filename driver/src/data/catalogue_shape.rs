//! What a catalogue looks like to the losses, once a tokenizer has cut its titles into tokens.

use std::iter::successors;

use anyhow::Result;
use candle_trie::TokenTrie;
use serde::Serialize;

use crate::data::{catalogue::Interaction, responses::Responses};

/// Sizes of the trie, and of the sets that the rows of given responses meet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CatalogueShape {
    /// Items.
    pub items: usize,
    /// Different titles: items with one title cannot be told apart.
    pub titles: usize,
    /// Nodes of the trie.
    pub nodes: usize,
    /// Nodes with more than one child.
    pub branching_nodes: usize,
    /// Tokens of the longest title, end token included.
    pub depth: usize,
    /// Tokens that a title can begin with.
    pub root_fan_out: usize,
    /// The largest numbers of children of one node.
    pub largest_fan_outs: Vec<usize>,
    /// Labelled rows of the responses.
    pub rows: usize,
    /// The share of them that have one token to choose from.
    pub unary_share: f64,
    /// Tokens that may follow, summed over all rows: what the loss has to look at.
    pub valid_logits: usize,
    /// Σ ln n over the rows with more than one token, by their number.
    pub mean_log_fan_out: f64,
    /// The rows by their place in the response.
    pub positions: Vec<Position>,
}

/// The rows of one place in the responses.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Position {
    /// How many responses are that long.
    pub rows: usize,
    /// Tokens to choose from on average.
    pub mean_fan_out: f64,
    /// The share of rows with one.
    pub unary_share: f64,
}

/// As many of the largest fan-outs are kept.
const LARGEST: usize = 5;

impl CatalogueShape {
    /// The shape of a catalogue, seen by the targets of these rows.
    pub fn new(responses: &Responses, rows: &[Interaction]) -> Result<Self> {
        let leaves = rows.iter().map(|row| responses.leaf(row.target));
        Ok(Self::of(
            responses.trie(),
            &leaves.collect::<Result<Vec<_>>>()?,
        ))
    }

    /// The shape of a catalogue, seen by every title once.
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

/// The nodes above a node, the root last.
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
    /// Whether it is so close to 1 that the temperature sits at a clamp.
    pub root_at_clamp: bool,
    /// exp of the mean ln(η·n) over the rows with more than one token.
    pub branching_odds: f64,
    /// Whether the branching scope moves the temperature: that is above 1.
    pub branching_defined: bool,
}

impl AdaptiveVerdict {
    /// The verdict for η.
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

    /// What to do, in words.
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
                 the temperature will sit at its upper clamp."
            )
        } else {
            format!("The root scope of ats is defined: η·n = {eta} × {n:.0} = {root_odds:.2} > 1.")
        };
        let choice = match (
            self.root_defined && !self.root_at_clamp,
            self.branching_defined,
        ) {
            (true, _) => "The default, --scope root, will do.".to_owned(),
            (false, true) => format!(
                "Use --scope branching: over all rows with a choice η·n is {:.2} on (geometric) average.",
                self.branching_odds
            ),
            (false, false) => format!(
                "Over all rows with a choice η·n is {:.2} on (geometric) average, so --scope branching would not move \
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
    use crate::data::{
        catalogue::{Catalogue, Item},
        tokenizer::TextTokenizer,
    };

    #[test]
    fn a_shape_counts_what_a_walk_over_the_responses_meets() {
        let titles = ["The Sea", "The Sea Wall", "A Glass", "A Glass"];
        let items = ["1", "2", "3", "4"]
            .into_iter()
            .zip(titles)
            .map(|(id, title)| Item {
                id: id.into(),
                title: title.into(),
            });
        let catalogue = Catalogue::new(items.collect()).unwrap();
        let quoted: Vec<String> = titles.iter().map(|title| format!("\"{title}\"")).collect();
        let tokenizer = TextTokenizer::train(quoted.iter().map(String::as_str), 300).unwrap();
        let responses = Responses::new(&catalogue, &tokenizer).unwrap();
        let rows: Vec<Interaction> = [0, 1, 3]
            .map(|target| Interaction {
                user: String::new(),
                history: vec![0],
                target,
            })
            .into();
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
        assert!(advice(5, 4.0).contains("clamp"), "{}", advice(5, 4.0));
        assert!(advice(64, 4.0).contains("--scope root"));
        assert!(advice(4, 1.0).contains("--eta"), "{}", advice(4, 1.0));
    }
}
