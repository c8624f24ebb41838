//! Tokenizes a catalogue: the responses that a model may give, and the trie of them all.

use std::{
    collections::BTreeSet,
    fmt::{self, Display, Formatter},
};

use anyhow::{Context, Result, anyhow, ensure};
use candle_trie::{Error, TokenTrie};
use rayon::prelude::*;
use serde::Serialize;

use crate::data::{
    catalogue::{Catalogue, Identifier},
    semantic_ids::SemanticIds,
    tokenizer::TextTokenizer,
};

/// How many titles, spread over the catalogue, are compared with the trie of a run.
const COMPARED_TITLES: usize = 4_096;

/// How many groups of merged titles are shown.
const EXAMPLES: usize = 3;

/// The responses of all items in tokens, with the end token.
pub struct Responses {
    trie: TokenTrie,
    /// The leaf of each item. Items with one title share a leaf.
    leaves: Vec<u32>,
}

/// Different titles that a tokenizer turns into the same tokens. To a model they are one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MergedTitles {
    /// Number of titles that have the tokens of another.
    pub count: usize,
    /// The first groups of titles that have the same tokens.
    pub examples: Vec<Vec<String>>,
}

/// Items that share a path of the trie with others: two of one title, or of the same codes. To a model they are one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collisions {
    /// Number of items that share a path.
    pub items: usize,
    /// Number of paths that are shared.
    pub paths: usize,
    /// Number of items of the path that most items share.
    pub largest: usize,
}

impl Responses {
    /// Takes the titles of a catalogue in tokens, out of the trie of a run where there is one, and warns of those that
    /// the tokenizer does not tell apart.
    pub fn open(
        catalogue: &Catalogue,
        tokenizer: &TextTokenizer,
        trie: Option<TokenTrie>,
    ) -> Result<Self> {
        let responses = match trie {
            Some(trie) => Self::of_run(trie, catalogue, tokenizer)?,
            None => Self::new(catalogue, tokenizer)?,
        };
        let merged = responses.merged_titles(catalogue);
        if merged.count > 0 {
            eprintln!("warning: {merged}");
        }
        let collisions = responses.collisions();
        if collisions.items > 0 && catalogue.identifier() == Identifier::Codes {
            eprintln!("warning: {collisions}");
        }
        Ok(responses)
    }

    /// Tokenizes every title of a catalogue.
    pub fn new(catalogue: &Catalogue, tokenizer: &TextTokenizer) -> Result<Self> {
        let paths = Paths::new(catalogue, tokenizer)?;
        let numbers = (0..catalogue.items().len() as u64).into_par_iter();
        let paths: Vec<Vec<u32>> = numbers
            .map(|number| paths.path(number))
            .collect::<Result<_>>()?;
        let trie = TokenTrie::new((0..).zip(&paths)).map_err(|error| named(error, catalogue))?;
        let leaves = leaves(&trie).context("the trie does not have every item once")?;
        Ok(Self { trie, leaves })
    }

    /// Takes the responses from the trie that a run keeps of its catalogue. To tokenize a million titles, or to compare
    /// them all with the trie, takes some twenty seconds of two processors. So only some titles are compared here: the
    /// run has compared hashes of the catalogue, the tokenizer and the trie, unless it is from before it kept them. Where
    /// the number of items or a title differs, all titles are tokenized, to say what does.
    pub fn of_run(
        trie: TokenTrie,
        catalogue: &Catalogue,
        tokenizer: &TextTokenizer,
    ) -> Result<Self> {
        // Runs from before items had numbers of their own have the ids of the data there.
        if let Some(leaves) = leaves(&trie) {
            let kept = Self {
                trie: trie.clone(),
                leaves,
            };
            if kept.has_titles_of(catalogue, tokenizer)? {
                return Ok(kept);
            }
        }
        let responses = Self::new(catalogue, tokenizer)?;
        responses.check_same(&trie)?;
        Ok(responses)
    }

    /// Tells whether there are as many items as in a catalogue, with the same tokens where some of them are compared.
    fn has_titles_of(&self, catalogue: &Catalogue, tokenizer: &TextTokenizer) -> Result<bool> {
        let items = catalogue.items();
        if items.len() != self.leaves.len() {
            return Ok(false);
        }
        let paths = Paths::new(catalogue, tokenizer)?;
        for number in (0..items.len()).step_by(items.len().div_ceil(COMPARED_TITLES)) {
            let number = number as u64;
            if self.path(number)? != paths.path(number)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Collects the titles of the catalogue that the tokenizer does not tell apart.
    pub fn merged_titles(&self, catalogue: &Catalogue) -> MergedTitles {
        let mut merged = MergedTitles::default();
        if !catalogue.identifier().needs_title() {
            return merged;
        }
        for (_, items) in self.trie.leaves() {
            if items.len() < 2 {
                continue;
            }
            let titles: BTreeSet<String> =
                items.iter().map(|&item| catalogue.label(item)).collect();
            if titles.len() > 1 {
                merged.count += titles.len();
                if merged.examples.len() < EXAMPLES {
                    merged.examples.push(titles.into_iter().collect());
                }
            }
        }
        merged
    }

    /// Counts the items that share a path with others.
    pub fn collisions(&self) -> Collisions {
        let mut collisions = Collisions::default();
        let groups = self.trie.leaves().map(|(_, items)| items.len());
        for items in groups.filter(|&items| items > 1) {
            collisions.items += items;
            collisions.paths += 1;
            collisions.largest = collisions.largest.max(items);
        }
        collisions
    }

    /// Returns the trie of all responses.
    pub fn trie(&self) -> &TokenTrie {
        &self.trie
    }

    /// Fails where a checkpoint's trie is not the trie of this catalogue.
    pub fn check_same(&self, trie: &TokenTrie) -> Result<()> {
        ensure!(
            self.has_the_paths_of(trie),
            "the checkpoint was trained on another catalogue: its trie has {} items and {} nodes, this one {} and {}",
            trie.item_count(),
            trie.node_count(),
            self.trie.item_count(),
            self.trie.node_count()
        );
        Ok(())
    }

    /// Tells whether a trie has as many items at the ends of the same paths. Their ids do not matter: runs of earlier
    /// versions have those of the data.
    fn has_the_paths_of(&self, trie: &TokenTrie) -> bool {
        let ours = &self.trie;
        let counts = |trie: &TokenTrie| -> Vec<(u32, usize)> {
            let leaves = trie.leaves();
            leaves.map(|(leaf, items)| (leaf, items.len())).collect()
        };
        ours.node_count() == trie.node_count()
            && (0..ours.node_count() as u32).all(|node| ours.children(node) == trie.children(node))
            && counts(ours) == counts(trie)
    }

    /// Returns the tokens of an item's response, with the end token.
    pub fn path(&self, item: u64) -> Result<Vec<u32>> {
        let mut node = self.leaf(item)?;
        let mut path = Vec::new();
        while let Some(parent) = self.trie.parent(node) {
            let first = self.trie.first_child(parent);
            let place = first.and_then(|first| node.checked_sub(first));
            let token = place.and_then(|place| self.trie.children(parent).get(place as usize));
            path.extend(token);
            node = parent;
        }
        path.reverse();
        Ok(path)
    }

    /// Returns the items that a model recommends together with an item, and that item.
    pub fn together_with(&self, item: u64) -> Result<&[u64]> {
        Ok(self.trie.items(self.leaf(item)?))
    }

    /// Returns the leaf of an item. Items with one title share a leaf.
    pub fn leaf(&self, item: u64) -> Result<u32> {
        let leaf = usize::try_from(item).ok();
        let leaf = leaf.and_then(|item| self.leaves.get(item));
        Ok(*leaf.with_context(|| format!("there is no item of number {item}"))?)
    }
}

/// Makes the tokens of the items' responses.
struct Paths<'a> {
    catalogue: &'a Catalogue,
    tokenizer: &'a TextTokenizer,
    /// The codes of the items and the token of each code.
    codes: Option<(&'a SemanticIds, Vec<u32>)>,
}

impl<'a> Paths<'a> {
    fn new(catalogue: &'a Catalogue, tokenizer: &'a TextTokenizer) -> Result<Self> {
        let codes = catalogue.semantic_ids();
        let codes = codes.map(|codes| anyhow::Ok((codes, codes.tokens(tokenizer)?)));
        Ok(Self {
            catalogue,
            tokenizer,
            codes: codes.transpose()?,
        })
    }

    /// Returns the tokens of an item's response, with the end token.
    fn path(&self, number: u64) -> Result<Vec<u32>> {
        let mut path = match (&self.codes, self.catalogue.identifier()) {
            // Tokens of codes are looked up: to tokenize millions of texts takes minutes.
            (Some((codes, tokens)), Identifier::Codes) => {
                let path = codes.path(usize::try_from(number)?).unwrap_or_default();
                path.iter().map(|&code| tokens[code as usize]).collect()
            }
            _ => self.tokenizer.encode(&self.catalogue.name(number))?,
        };
        ensure!(
            !path.is_empty(),
            "the title of item {:?}, {:?}, tokenizes to nothing",
            self.catalogue.ids(&[number]).collect::<String>(),
            self.catalogue.label(number)
        );
        path.push(self.tokenizer.end());
        Ok(path)
    }
}

/// Returns the leaf of each item, if the items are numbered from 0 and each is in the trie once.
fn leaves(trie: &TokenTrie) -> Option<Vec<u32>> {
    let mut leaves = vec![None; trie.item_count()];
    for (leaf, items) in trie.leaves() {
        for &item in items {
            let place = leaves.get_mut(usize::try_from(item).ok()?)?;
            if place.replace(leaf).is_some() {
                return None;
            }
        }
    }
    leaves.into_iter().collect()
}

/// Names the items of a trie's error by their ids in the data.
fn named(error: Error, catalogue: &Catalogue) -> anyhow::Error {
    let items = match error {
        Error::PathIsPrefix { item, other, .. } => [item, other],
        error => return error.into(),
    };
    let names = items.map(|item| {
        let id = catalogue.ids(&[item]).collect::<String>();
        format!("{id:?} ({:?})", catalogue.label(item))
    });
    anyhow!(
        "the title of item {} continues where that of item {} ends: it contains the end token, or the tokenizer \
         drops what distinguishes them",
        names[1],
        names[0]
    )
}

impl Display for Collisions {
    fn fmt(&self, formatter: &mut Formatter) -> fmt::Result {
        let Self {
            items,
            paths,
            largest,
        } = self;
        write!(
            formatter,
            "{items} items share their codes with another, on {paths} paths of up to {largest} items: the model cannot tell \
             them apart, recommends them together, and a hit on one of them counts as a hit on each"
        )
    }
}

impl Display for MergedTitles {
    fn fmt(&self, formatter: &mut Formatter) -> fmt::Result {
        let group = |titles: &Vec<String>| {
            let titles: Vec<String> = titles.iter().map(|title| format!("{title:?}")).collect();
            titles.join(" = ")
        };
        let examples: Vec<String> = self.examples.iter().map(group).collect();
        write!(
            formatter,
            "the tokenizer gives {} different titles the same tokens as another ({}): the model cannot tell them apart, \
             recommends them together, and a hit on one of them counts as a hit on each",
            self.count,
            examples.join(", ")
        )
    }
}

#[cfg(test)]
mod tests;
