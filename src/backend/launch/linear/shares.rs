//! A batch turned round: for each token, the sets and rows that have it.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::{LinearRow, LinearRows};
use crate::{TokenSet, TokenSets};

/// What the gradient of one token's head row has of one set; mirrors `LinearShare` of
/// `kernels/linear_head_gradient.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct LinearShare {
    errors: u64,
    first: u32,
    rows: u32,
    stride: u32,
    unused: u32,
}

const _: () = assert!(size_of::<LinearShare>() == 24 && offset_of!(LinearShare, first) == 8);

/// The tokens whose head rows a batch gives a gradient, and what each is the sum of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinearShares {
    /// To be uploaded: token by token, each in the order of the rows.
    pub(super) shares: Vec<LinearShare>,
    /// To be uploaded, rising.
    pub(super) tokens: Vec<u32>,
    /// To be uploaded: where the shares of each token begin, and behind them where the last ends.
    pub(super) starts: Vec<u32>,
    /// Instead of all these: so many tokens, each with the product of its number.
    pub(super) whole: Option<u32>,
}

impl LinearShares {
    /// Of rows over `sets`, which are those that the rows were made with.
    #[must_use]
    pub fn new(rows: &LinearRows, sets: &TokenSets) -> Self {
        if let Some(vocabulary) = rows.vocabulary {
            let counts = rows.rows.iter().any(LinearRow::counts);
            return Self {
                whole: counts.then_some(vocabulary),
                ..Self::default()
            };
        }
        let listed = |set| match sets.get(set) {
            Some(TokenSet::Listed(tokens)) => tokens,
            _ => &[],
        };
        let mut shares = Vec::new();
        let mut product = 0;
        for group in &rows.groups {
            for &token in listed(group.set) {
                let share = LinearShare {
                    first: product,
                    ..LinearShare::zeroed()
                };
                shares.push((token, share));
                product += 1;
            }
        }
        let mut first = rows.grouped() as u32;
        // Rows that do not count have no errors.
        let alike =
            rows.rows[rows.grouped()..].chunk_by(|a, b| a.set == b.set && a.counts() == b.counts());
        for alike in alike {
            let tokens = listed(alike[0].set);
            let share = |index| LinearShare {
                errors: alike[0].scores + index,
                first,
                rows: alike.len() as u32,
                stride: tokens.len() as u32,
                unused: 0,
            };
            if alike[0].counts() {
                shares.extend(
                    (0..)
                        .zip(tokens)
                        .map(|(index, &token)| (token, share(index))),
                );
            }
            first += alike.len() as u32;
        }
        // Stable: a token's shares stay in the order of the rows.
        shares.sort_by_key(|(token, _)| *token);
        Self::of_sorted(&shares)
    }

    /// How many tokens there are.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.whole.unwrap_or(self.tokens.len() as u32)
    }

    fn of_sorted(shares: &[(u32, LinearShare)]) -> Self {
        let mut turned = Self::default();
        for of_token in shares.chunk_by(|(a, _), (b, _)| a == b) {
            turned.tokens.push(of_token[0].0);
            turned.starts.push(turned.shares.len() as u32);
            turned
                .shares
                .extend(of_token.iter().map(|(_, share)| share));
        }
        turned.starts.push(turned.shares.len() as u32);
        turned
    }
}
