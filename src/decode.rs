//! Decoding: searches for the most probable items, which say what a model must read next and take
//! what it answers.
//!
//! The score of a path is the log-probability that the masked softmax gives it: each step is
//! normalised over the tokens of the node, at the temperature of training. Masking before the softmax
//! is what makes these the probabilities of *items*. A node with one token costs no probability, and
//! so no step: such tokens ride along with the next one that is chosen.

mod beam;
#[cfg_attr(not(feature = "cuda"), path = "decode/no_cuda.rs")]
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

/// A path that a search has found, and its items (several where items share one path).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchResult {
    /// The item ids, rising.
    pub items: Vec<u64>,
    /// The natural logarithm of the path's probability.
    pub log_probability: f64,
    /// What the path is ranked by: its log-probability, after the length penalty if there is one.
    pub score: f64,
}

/// A path as far as it was followed.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Path {
    node: u32,
    log_probability: f64,
    /// Tokens from the root.
    length: u32,
}
