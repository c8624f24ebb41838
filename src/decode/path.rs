//! The continuation of paths: from a node and the logits of its tokens to the nodes that can follow.

use super::Path;
use crate::{Error, Result, TokenTrie};

impl Path {
    /// Makes the empty path.
    pub fn root(trie: &TokenTrie) -> Self {
        Self {
            node: trie.root(),
            log_probability: 0.0,
            length: 0,
        }
    }

    /// Iterates over the paths that are one token longer, each with that token. `log_probabilities` has one entry
    /// for each token of the node.
    pub fn continued(
        self,
        trie: &TokenTrie,
        log_probabilities: impl Iterator<Item = f64>,
    ) -> impl Iterator<Item = (u32, Self)> {
        let (first_edge, tokens) = trie.edges(self.node).unwrap_or_default();
        (tokens.iter().zip(first_edge..))
            .zip(log_probabilities)
            .map(move |((&token, edge), log_probability)| {
                let path = Self {
                    node: edge + 1,
                    log_probability: self.log_probability + log_probability,
                    length: self.length + 1,
                };
                (token, path)
            })
    }

    /// Extends the path along unary nodes, and returns it with the tokens that this appends.
    pub fn follow_unary(self, trie: &TokenTrie) -> (Self, Vec<u32>) {
        let mut tokens = Vec::new();
        let path = self.end_of_unary(trie, |token| tokens.push(token));
        (path, tokens)
    }

    /// Extends the path along unary nodes, and calls `append` with each token on the way.
    pub fn end_of_unary(mut self, trie: &TokenTrie, mut append: impl FnMut(u32)) -> Self {
        // Most paths have a choice, which may be among many tokens: those of a mapped file are checked when they are looked at.
        while trie.fan_out(self.node) == 1
            && let Some((edge, &[token])) = trie.edges(self.node)
        {
            append(token);
            self.node = edge + 1;
            self.length += 1;
        }
        self
    }

    /// Returns whether the path is that of an item.
    pub fn is_complete(&self, trie: &TokenTrie) -> bool {
        trie.fan_out(self.node) == 0
    }
}

/// Computes ln p of each token of a node from their logits.
pub(super) fn log_softmax(logits: &[f64], temperature: f64) -> impl Iterator<Item = f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // If all logits are −∞, the tokens count as equally probable.
    let scaled = move |logit: f64| match largest == f64::NEG_INFINITY {
        true => 0.0,
        false => (logit - largest) / temperature,
    };
    let sum: f64 = logits.iter().map(|&logit| scaled(logit).exp()).sum();
    let log_sum = sum.ln();
    // Rounding must not make a path more probable than its prefix, because the exact search relies on it.
    logits
        .iter()
        .map(move |&logit| (scaled(logit) - log_sum).min(0.0))
}

/// Refuses logits that are NaN or +∞.
pub(super) fn check_logits(logits: &[Vec<f64>], nodes: &[u32], trie: &TokenTrie) -> Result<()> {
    for (row, (logits, &node)) in logits.iter().zip(nodes).enumerate() {
        for (&value, &token) in logits.iter().zip(trie.children(node)) {
            if value.is_nan() || value == f64::INFINITY {
                return Err(Error::NonFinite {
                    row,
                    position: row as u32,
                    token,
                    value,
                });
            }
        }
    }
    Ok(())
}
