//! Holds the items that can be recommended, and the choices of users.

use std::collections::{HashMap, HashSet};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::data::semantic_ids::SemanticIds;

/// One thing that can be recommended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its id in the data. Any text is an id: `7` and `007` are two.
    pub id: String,
    /// Its title. It may be empty where items are identified by codes alone.
    pub title: String,
}

/// Kinds of text that identify an item: the model is taught to answer with it, and it stands for the item in prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Identifier {
    /// The title in quotes. --title-column may name any text as the title.
    #[default]
    Title,
    /// The codes of the semantic ID, each of which is one token.
    Codes,
    /// The codes, and after them the title in quotes.
    CodesTitle,
}

impl Identifier {
    /// Tells whether items without a title cannot be identified.
    pub fn needs_title(self) -> bool {
        self != Self::Codes
    }
}

/// One row: the items that a user chose, and the one chosen next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interaction {
    /// The id of the user in the data.
    pub user: String,
    /// The numbers of items in the catalogue, oldest first.
    pub history: Vec<u64>,
    /// The number of the item that was chosen next.
    pub target: u64,
}

#[cfg(test)]
impl Interaction {
    /// Makes a row of a test.
    pub fn of(user: &str, history: &[u64], target: u64) -> Self {
        Self {
            user: user.into(),
            history: history.to_vec(),
            target,
        }
    }
}

/// The items of a catalogue. An item's number is its place in the data, from 0. Tries and searches have it as the
/// item's id.
#[derive(Clone, Debug)]
pub struct Catalogue {
    items: Vec<Item>,
    numbers: HashMap<String, u64>,
    identifier: Identifier,
    semantic_ids: Option<SemanticIds>,
}

impl Catalogue {
    /// Collects items; two with one id are an error.
    pub fn new(items: Vec<Item>) -> Result<Self> {
        ensure!(
            !items.is_empty(),
            "the catalogue holds no item with a title"
        );
        let mut numbers = HashMap::with_capacity(items.len());
        for (number, item) in items.iter().enumerate() {
            if let Some(first) = numbers.insert(item.id.clone(), number as u64) {
                bail!(
                    "item {:?} occurs twice: {:?} and {:?}",
                    item.id,
                    items[first as usize].title,
                    item.title
                );
            }
        }
        Ok(Self {
            items,
            numbers,
            identifier: Identifier::Title,
            semantic_ids: None,
        })
    }

    /// Identifies the items by their codes, or by codes and titles.
    pub fn identified_by(self, identifier: Identifier, semantic_ids: SemanticIds) -> Self {
        Self {
            identifier,
            semantic_ids: Some(semantic_ids),
            ..self
        }
    }

    /// Makes the catalogue of these ids and titles.
    #[cfg(test)]
    pub fn of(items: &[(&str, &str)]) -> Result<Self> {
        let item = |&(id, title): &(&str, &str)| Item {
            id: id.into(),
            title: title.into(),
        };
        Self::new(items.iter().map(item).collect())
    }

    /// Makes the catalogue of these titles, whose ids are their numbers.
    #[cfg(test)]
    pub fn of_titles(titles: &[&str]) -> Result<Self> {
        let ids: Vec<String> = (0..titles.len()).map(|id| id.to_string()).collect();
        let items = ids.iter().map(String::as_str).zip(titles.iter().copied());
        Self::of(&items.collect::<Vec<_>>())
    }

    /// Leaves out the items that `left` does not say are left. Returns the others, by new numbers.
    pub fn keep(self, left: &[bool]) -> Result<Self> {
        let mut left = left.iter();
        let mut items = self.items;
        items.retain(|_| left.next().copied().unwrap_or(false));
        Self::new(items)
    }

    /// Returns the items in the order of their numbers.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Returns the number of the item of an id, if there is such an item.
    pub fn number(&self, id: &str) -> Option<u64> {
        self.numbers.get(id).copied()
    }

    /// Returns the item of a number, if there is such an item.
    pub fn item(&self, number: u64) -> Option<&Item> {
        self.items.get(usize::try_from(number).ok()?)
    }

    /// Returns the ids of items.
    pub fn ids<'a>(&'a self, numbers: &[u64]) -> impl Iterator<Item = &'a str> {
        let items = numbers.iter().filter_map(|&number| self.item(number));
        items.map(|item| item.id.as_str())
    }

    /// Returns what the items are identified by.
    pub fn identifier(&self) -> Identifier {
        self.identifier
    }

    /// Returns the codes of the items, if they are identified by codes.
    pub fn semantic_ids(&self) -> Option<&SemanticIds> {
        self.semantic_ids.as_ref()
    }

    /// Returns the text that identifies the item of a number, as prompts and responses have it; it is empty where there
    /// is no such item.
    pub fn name(&self, number: u64) -> String {
        let title = self.item(number).map(|item| quoted(&item.title));
        let codes = (self.semantic_ids.as_ref()).and_then(|codes| codes.text(number));
        match (self.identifier, title, codes) {
            (Identifier::CodesTitle, Some(title), Some(codes)) => format!("{codes} {title}"),
            (Identifier::Codes, _, Some(codes)) => codes,
            (_, title, _) => title.unwrap_or_default(),
        }
    }

    /// Returns the text that a reader knows the item of a number by: its title, or its codes where it has none.
    pub fn label(&self, number: u64) -> String {
        match self.item(number) {
            Some(item) if !item.title.is_empty() => item.title.clone(),
            _ => self.name(number),
        }
    }

    /// Returns how many different identifiers the items have.
    pub fn distinct_names(&self) -> usize {
        let codes = self.semantic_ids.as_ref();
        let names = self.items.iter().enumerate().map(|(number, item)| {
            let title = self.identifier.needs_title().then_some(item.title.as_str());
            (codes.and_then(|codes| codes.path(number)), title)
        });
        names.collect::<HashSet<_>>().len()
    }
}

/// Returns a title as prompts and responses have it.
pub fn quoted(title: &str) -> String {
    format!("\"{title}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_texts_that_come_back_as_they_went_in() {
        let ids = ["7", "007", "B00113X", "-1"];
        let catalogue = Catalogue::of(&ids.map(|id| (id, "Emma"))).unwrap();
        let numbers = ids.map(|id| catalogue.number(id).unwrap());
        assert_eq!(numbers, [0, 1, 2, 3]);
        assert_eq!(catalogue.ids(&numbers).collect::<Vec<_>>(), ids);
        assert_eq!((catalogue.number("07"), catalogue.item(4)), (None, None));
        assert_eq!(catalogue.distinct_names(), 1);
    }

    #[test]
    fn two_items_of_one_id_are_refused() {
        let error = Catalogue::of(&[("7", "Emma"), ("7", "Persuasion")]).unwrap_err();
        assert!(error.to_string().contains("item \"7\" occurs twice"));
        assert!(Catalogue::of(&[]).is_err());
    }
}
