//! What can be recommended, and who chose what after which history.

use std::collections::HashMap;

use anyhow::{Result, bail};

/// One thing that can be recommended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The number by which interactions name it.
    pub id: u64,
    /// What a prompt calls it, and what the model is taught to say.
    pub title: String,
}

/// One training or test row: the items a user chose, and the one chosen next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interaction {
    /// Who chose, as the data calls them.
    pub user: String,
    /// Item ids, oldest first.
    pub history: Vec<u64>,
    /// The item chosen after them.
    pub target: u64,
}

/// All items, by id.
#[derive(Clone, Debug)]
pub struct Catalogue {
    items: Vec<Item>,
    position: HashMap<u64, usize>,
}

impl Catalogue {
    /// Collects items; two with one id are an error.
    pub fn new(mut items: Vec<Item>) -> Result<Self> {
        if items.is_empty() {
            bail!("the catalogue holds no item");
        }
        items.sort_by_key(|item| item.id);
        if let Some(pair) = items.windows(2).find(|pair| pair[0].id == pair[1].id) {
            bail!(
                "item {} is there twice: \"{}\" and \"{}\"",
                pair[0].id,
                pair[0].title,
                pair[1].title
            );
        }
        let position = items
            .iter()
            .enumerate()
            .map(|(position, item)| (item.id, position))
            .collect();
        Ok(Self { items, position })
    }

    /// The items in order of their ids.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The title of an item, if there is such an item.
    pub fn title(&self, id: u64) -> Option<&str> {
        self.position
            .get(&id)
            .map(|&position| self.items[position].title.as_str())
    }
}
