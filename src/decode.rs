//! Decoding: searches for the most probable items. A search says which tokens the model must read next, and takes the
//! scores that the model computes.
//!
//! The score of a path is the log-probability that the masked softmax gives it: each step is
//! normalised over the tokens of the node, at the temperature of training. Masking before the softmax
//! makes these the probabilities of *items*. A node with one token has probability 1 and
//! takes no step: such tokens are appended to the one that was chosen before them.

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
    /// The ids of the items, in rising order. Excluded items are not among them.
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
