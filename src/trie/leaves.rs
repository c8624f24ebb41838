//! The leaves of a trie, with the items that end at each.

use std::sync::OnceLock;

use rayon::prelude::*;

use super::file::{WHAT, malformed};
use crate::array::Array;
use crate::sets::check_offsets;
use crate::{Error, Result};

/// The leaves with the items that end at each. Nothing here relies on the arrays: those of a mapped file may hold anything.
#[derive(Debug)]
pub(super) struct Leaves {
    /// The nodes without children, in rising order.
    nodes: Array<u32>,
    /// The bounds of each leaf's items: those of leaf `nodes[i]` are `items[offsets[i]..offsets[i + 1]]`.
    offsets: Array<u32>,
    /// The item ids, in rising order inside a leaf.
    items: Array<u64>,
    /// The places in `items`, ordered by the ids there and, of one id, by place. Computed when they are first asked for, unless
    /// they come from a file.
    by_id: OnceLock<Array<u32>>,
}

impl PartialEq for Leaves {
    fn eq(&self, other: &Self) -> bool {
        (&self.nodes, &self.offsets, &self.items) == (&other.nodes, &other.offsets, &other.items)
    }
}

impl Eq for Leaves {}

impl Leaves {
    pub fn new(nodes: Array<u32>, offsets: Array<u32>, items: Array<u64>) -> Self {
        Self {
            nodes,
            offsets,
            items,
            by_id: OnceLock::new(),
        }
    }

    /// Adds the places in the order of their ids, which somebody has computed before.
    pub fn with_order(self, by_id: Array<u32>) -> Self {
        Self {
            by_id: OnceLock::from(by_id),
            ..self
        }
    }

    pub fn nodes(&self) -> &[u32] {
        &self.nodes
    }

    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    pub fn items(&self) -> &[u64] {
        &self.items
    }

    pub fn by_id(&self) -> &[u32] {
        self.by_id.get_or_init(|| {
            let place = |(place, &id): (usize, &u64)| (id, place as u32);
            let mut places: Vec<_> = self.items.par_iter().enumerate().map(place).collect();
            places.par_sort_unstable();
            let places: Vec<u32> = places.into_par_iter().map(|(_, place)| place).collect();
            places.into()
        })
    }

    /// Iterates over the leaves in rising order, each with its items.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, &[u64])> {
        let items = |(leaf, &node): (usize, &u32)| (node, self.items_of(leaf));
        self.nodes().iter().enumerate().map(items)
    }

    /// Returns the items that end at a node, of which there is none unless it is a leaf.
    pub fn items_at(&self, node: u32) -> &[u64] {
        (self.nodes.binary_search(&node)).map_or(&[], |leaf| self.items_of(leaf))
    }

    fn items_of(&self, leaf: usize) -> &[u64] {
        let bounds = self.offsets.get(leaf).zip(self.offsets.get(leaf + 1));
        let items = bounds.and_then(|(&start, &end)| self.items.get(start as usize..end as usize));
        items.unwrap_or(&[])
    }

    /// Iterates over the nodes of the leaves that an item is listed at, in rising order.
    pub fn of_item(&self, item: u64) -> impl Iterator<Item = u32> {
        let (items, by_id) = (self.items(), self.by_id());
        let id = |place: u32| items.get(place as usize).copied();
        let first = by_id.partition_point(|&place| id(place) < Some(item));
        (by_id[first..].iter())
            .take_while(move |&&place| id(place) == Some(item))
            .filter_map(|&place| {
                let after = self.offsets.partition_point(|&offset| offset <= place);
                self.nodes.get(after.checked_sub(1)?).copied()
            })
    }

    /// Refuses arrays whose lengths do not fit together.
    pub fn check_lengths(&self) -> Result<()> {
        if self.offsets.len() != self.nodes.len() + 1 {
            return Err(malformed(format!(
                "{} leaves need {} item offsets, but there are {}",
                self.nodes.len(),
                self.nodes.len() + 1,
                self.offsets.len()
            )));
        }
        match self.by_id.get() {
            Some(by_id) if by_id.len() != self.items.len() => Err(malformed(format!(
                "{} items have {} places in the order of their ids",
                self.items.len(),
                by_id.len()
            ))),
            _ => Ok(()),
        }
    }

    /// Checks what the arrays hold, for a trie whose nodes have these offsets.
    pub fn check(&self, offsets: &[u32]) -> Result<()> {
        let childless = (offsets.windows(2).enumerate())
            .filter(|(_, pair)| pair[0] == pair[1])
            .map(|(node, _)| node as u32);
        if !childless.eq(self.nodes.iter().copied()) {
            return Err(malformed(
                "the listed leaves are not the nodes without children, in rising order".into(),
            ));
        }
        check_offsets(WHAT, &self.offsets, self.items.len())?;
        for (node, items) in self.iter() {
            if items.is_empty() || !items.is_sorted() {
                return Err(malformed(format!(
                    "leaf {node} must have at least one item, and its items in rising order"
                )));
            }
        }
        self.check_order()
    }

    /// Checks the order of the ids: where as many places as there are items rise strictly, each is there once.
    fn check_order(&self) -> Result<()> {
        let Some(by_id) = self.by_id.get() else {
            return Ok(());
        };
        let named = |&place: &u32| Some((*self.items.get(place as usize)?, place));
        let fault = (by_id.iter().zip(by_id.iter().skip(1)))
            .position(|(a, b)| named(a).is_none() || named(a) >= named(b));
        let last = by_id.last().is_some_and(|last| named(last).is_none());
        match fault.or(last.then(|| by_id.len() - 1)) {
            None => Ok(()),
            Some(index) => Err(Error::Malformed {
                what: WHAT,
                detail: format!("items_by_id is not the order of the ids at index {index}"),
            }),
        }
    }
}
