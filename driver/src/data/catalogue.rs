//! Holds the items that can be recommended, and the choices of users.

use std::collections::{HashMap, HashSet};

use anyhow::{Result, bail, ensure};

/// One thing that can be recommended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its id in the data. Any text is an id: `7` and `007` are two.
    pub id: String,
    /// Its title, which stands in prompts and which the model is taught to answer.
    pub title: String,
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
        Ok(Self { items, numbers })
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

    /// Returns how many different titles the items have.
    pub fn distinct_titles(&self) -> usize {
        let titles: HashSet<&str> = self.items.iter().map(|item| item.title.as_str()).collect();
        titles.len()
    }
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
        assert_eq!(catalogue.distinct_titles(), 1);
    }

    #[test]
    fn two_items_of_one_id_are_refused() {
        let error = Catalogue::of(&[("7", "Emma"), ("7", "Persuasion")]).unwrap_err();
        assert!(error.to_string().contains("item \"7\" occurs twice"));
        assert!(Catalogue::of(&[]).is_err());
    }
}
