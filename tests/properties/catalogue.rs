//! Random catalogues, and the same ones as the plainest data structure there is.

use std::collections::{BTreeMap, BTreeSet};

use candle_trie::TokenTrie;
use proptest::prelude::*;

/// An item's id and path.
pub type Item = (u64, Vec<u32>);

/// Up to `items` items that share beginnings and sometimes whole paths, ended by the largest token
/// so that none is the beginning of another.
pub fn catalogues(items: usize) -> impl Strategy<Value = Vec<Item>> {
    let path = prop::collection::vec(0u32..5, 0..7);
    let item = (0u64..40, path).prop_map(|(id, mut path)| {
        path.push(END);
        (id, path)
    });
    prop::collection::vec(item, 1..items)
}

/// The end token of [`catalogues`].
pub const END: u32 = 5;

pub fn trie(items: &[Item]) -> TokenTrie {
    TokenTrie::new(items.iter().map(|(id, path)| (*id, path))).unwrap()
}

/// Every prefix of every path, with the tokens that follow it and the items that it is the path of.
#[derive(Default)]
pub struct Prefixes(pub BTreeMap<Vec<u32>, (BTreeSet<u32>, Vec<u64>)>);

impl Prefixes {
    pub fn new(items: &[Item]) -> Self {
        let mut prefixes = Self::default();
        for (id, path) in items {
            for length in 0..path.len() {
                let node = prefixes.0.entry(path[..length].to_vec()).or_default();
                node.0.insert(path[length]);
            }
            prefixes.0.entry(path.clone()).or_default().1.push(*id);
        }
        for (_, items) in prefixes.0.values_mut() {
            items.sort_unstable();
        }
        prefixes
    }

    /// The prefixes in breadth-first order: the shorter first, equally long ones by their tokens.
    pub fn breadth_first(&self) -> Vec<&Vec<u32>> {
        let mut order: Vec<_> = self.0.keys().collect();
        order.sort_by_key(|prefix| prefix.len());
        order
    }
}
