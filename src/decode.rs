//! Decoding: searches for the most probable items. A search says which tokens the model must read next, and takes the scores that the
//! model computes.
//!
//! The score of a path is its log-probability under the masked softmax: each step is normalised over the token set of the node, at
//! the temperature of training. Because the mask comes before the softmax, these are the probabilities of *items*. The token of a
//! unary node has probability 1 and needs no step. It is appended to the token that was chosen before it.

mod beam;
#[cfg(feature = "cuda")]
mod cuda;
mod exact;
mod excluded;
mod kernels;
mod path;
mod rules;

pub use beam::{BeamSearch, BeamStep, Normalisation};
pub use exact::{ExactSearch, Expansion, exact_top_k};

use excluded::Excluded;
use serde::Serialize;

/// A result of a search: a path, and the items that it spells (several where items share one path).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchResult {
    /// The ids of the items, in ascending order. Excluded items are not among them.
    pub items: Vec<u64>,
    /// The natural logarithm of the path's probability, in nats.
    pub log_probability: f64,
    /// The score that results are ranked by: the log-probability, after the length penalty if there is one.
    pub score: f64,
}

/// A path from the root to a node.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Path {
    node: u32,
    log_probability: f64,
    /// The number of tokens from the root.
    length: u32,
}
