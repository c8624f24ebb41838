//! The head rows of the largest token sets, gathered once for a head that is not trained.

use std::any::Any;
use std::cmp::Reverse;
use std::collections::HashMap;

use super::head::HEAD;
use super::tensor::{Matrix, Scalar};
use crate::backend::batch::Batch;
use crate::backend::cpu::element::Real;
use crate::backend::cpu::linear::{Head, HeadRows};
use crate::{Error, Result, TokenSet, TokenSets};

/// The limit of the memory of the rows where none is given, in bytes.
pub(super) const DEFAULT_LIMIT: usize = 64 << 20;

/// The smallest size of a set whose rows are gathered, in tokens. Smaller sets are seldom worth a GEMM.
const LEAST_TOKENS: usize = 32;

/// The number of sets that the largest are chosen from. In a trie the later ones are those of longer prefixes, which few
/// rows have, and there may be any number of them.
const CONSIDERED_SETS: usize = 1 << 20;

/// Gathered head rows by token set, in the type they are computed in.
#[derive(Debug)]
pub(super) struct Gathered {
    /// The number of sets whose rows are gathered.
    pub sets: usize,
    /// A `HashMap<u32, HeadRows<R>>` for the R of the head's dtype; `None` for a head on a device, whose kernels read the head
    /// itself.
    rows: Option<Box<dyn Any + Send + Sync>>,
}

impl Gathered {
    pub const ON_DEVICE: Self = Self {
        sets: 0,
        rows: None,
    };

    /// Gathers the rows of a head `[V, H]`, which must have all tokens of the sets, for the largest sets, within so many bytes.
    pub fn new<T: Scalar>(head: Matrix<T>, sets: &TokenSets, bytes: usize) -> Self {
        let head = Head::<T> {
            values: head.values,
            stride: head.stride,
            width: head.width,
            base: None,
            bias: &[],
            frozen: None,
        };
        let rows: HashMap<u32, HeadRows<T::Real>> = (largest_sets(sets, head.row_bytes(), bytes)
            .into_iter())
        .map(|(set, tokens)| (set, head.gather(tokens.iter().copied())))
        .collect();
        Self {
            sets: rows.len(),
            rows: Some(Box::new(rows)),
        }
    }

    /// Returns the rows if they are computed in this type.
    pub fn rows<R: Real>(&self) -> Option<&HashMap<u32, HeadRows<R>>> {
        self.rows.as_ref()?.downcast_ref()
    }
}

/// Returns the largest sets whose rows, `row_bytes` each, stay within `bytes` in all.
fn largest_sets(sets: &TokenSets, row_bytes: usize, bytes: usize) -> Vec<(u32, &[u32])> {
    let count = sets.count().unwrap_or(0).min(CONSIDERED_SETS) as u32;
    let mut candidates: Vec<(u32, &[u32])> = (0..count)
        .filter_map(|set| match sets.get(set) {
            Some(TokenSet::Listed(tokens)) if tokens.len() >= LEAST_TOKENS => Some((set, tokens)),
            _ => None,
        })
        .collect();
    candidates.sort_by_key(|(set, tokens)| (Reverse(tokens.len()), *set));
    let mut left = bytes;
    candidates.retain(
        |(_, tokens)| match left.checked_sub(tokens.len() * row_bytes) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        },
    );
    candidates
}

/// Refuses rows that were gathered for other token sets than those of the batch. Over the whole vocabulary gathered rows are not
/// used, so they may be those of any sets.
pub(super) fn check_gathered_sets(sets: &TokenSets, batch: &Batch) -> Result<()> {
    if *sets == batch.sets || batch.whole_vocabulary().is_some() {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: HEAD,
        expected: format!(
            "a frozen head made for the token sets of this loss ({})",
            described(&batch.sets)
        ),
        actual: format!("one made for others ({})", described(sets)),
    })
}

/// Describes token sets in a message, so that different ones differ there.
fn described(sets: &TokenSets) -> String {
    match sets.fingerprint() {
        Some(fingerprint) => fingerprint.to_string(),
        None => format!("the whole vocabulary of {}", sets.max_token() + 1),
    }
}
