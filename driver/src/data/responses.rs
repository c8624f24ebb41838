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
    catalogue::{Catalogue, Item},
    prompt::Prompt,
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
        Ok(responses)
    }

    /// Tokenizes every title of a catalogue.
    pub fn new(catalogue: &Catalogue, tokenizer: &TextTokenizer) -> Result<Self> {
        let items = catalogue.items().par_iter();
        let paths: Vec<Vec<u32>> = items
            .map(|item| tokenize(item, tokenizer))
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
        let numbered = (0..)
            .zip(items)
            .step_by(items.len().div_ceil(COMPARED_TITLES));
        for (number, item) in numbered {
            if self.path(number)? != tokenize(item, tokenizer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Collects the titles of the catalogue that the tokenizer does not tell apart.
    pub fn merged_titles(&self, catalogue: &Catalogue) -> MergedTitles {
        let mut merged = MergedTitles::default();
        for (_, items) in self.trie.leaves() {
            if items.len() < 2 {
                continue;
            }
            let titles = items.iter().filter_map(|&item| catalogue.item(item));
            let titles: BTreeSet<&str> = titles.map(|item| item.title.as_str()).collect();
            if titles.len() > 1 {
                merged.count += titles.len();
                if merged.examples.len() < EXAMPLES {
                    let titles = titles.into_iter().map(str::to_owned).collect();
                    merged.examples.push(titles);
                }
            }
        }
        merged
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

    /// Returns the leaf of an item. Items with one title share a leaf.
    pub fn leaf(&self, item: u64) -> Result<u32> {
        let leaf = usize::try_from(item).ok();
        let leaf = leaf.and_then(|item| self.leaves.get(item));
        Ok(*leaf.with_context(|| format!("there is no item of number {item}"))?)
    }
}

/// Returns the tokens of an item's response, with the end token.
fn tokenize(item: &Item, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
    let mut path = tokenizer.encode(&Prompt::response(&item.title))?;
    ensure!(
        !path.is_empty(),
        "the title of item {:?}, {:?}, tokenizes to nothing",
        item.id,
        item.title
    );
    path.push(tokenizer.end());
    Ok(path)
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
        Error::PathIsPrefix { item, other, .. } => [item, other].map(|item| catalogue.item(item)),
        error => return error.into(),
    };
    let names = items.map(|item| {
        item.map_or_else(String::new, |item| {
            format!("{:?} ({:?})", item.id, item.title)
        })
    });
    anyhow!(
        "the title of item {} continues where that of item {} ends: it contains the end token, or the tokenizer \
         drops what distinguishes them",
        names[1],
        names[0]
    )
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
mod tests {
    use super::*;

    /// Builds a tokenizer that has six letters and takes all others for one.
    fn tokenizer(end: Option<&str>) -> TextTokenizer {
        let json = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."},
            "behavior": "Isolated", "invert": false}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "?",
            "vocab": {"</s>": 0, "?": 1, "e": 2, "m": 3, "a": 4, "s": 5, "\"": 6}}}"#;
        TextTokenizer::new(json.parse().unwrap(), end, None).unwrap()
    }

    #[test]
    fn titles_that_the_tokenizer_does_not_tell_apart_are_counted_and_shown() {
        let titles = [
            "Emma", "EMMA", "emma", "日本", "中国", "Sea", "Sea", "Émma", "ßmma",
        ];
        let catalogue = Catalogue::of_titles(&titles).unwrap();
        let responses = Responses::new(&catalogue, &tokenizer(None)).unwrap();
        let merged = responses.merged_titles(&catalogue);
        assert_eq!(merged.count, 7);
        let groups: BTreeSet<Vec<String>> = merged.examples.iter().cloned().collect();
        let expected = [
            &["EMMA", "Emma", "emma"][..],
            &["ßmma", "Émma"],
            &["中国", "日本"],
        ];
        let expected = expected.map(|group| group.iter().map(|&title| title.into()).collect());
        let sorted = |mut group: Vec<String>| {
            group.sort();
            group
        };
        assert_eq!(groups, expected.map(sorted).into());
        let text = merged.to_string();
        for part in [
            "7 different titles",
            "\"EMMA\" = \"Emma\"",
            "counts as a hit on each",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let told_apart = Catalogue::of_titles(&["Sea", "Sea", "Emma"]).unwrap();
        let responses = Responses::new(&told_apart, &tokenizer(None)).unwrap();
        assert_eq!(
            responses.merged_titles(&told_apart),
            MergedTitles::default()
        );
    }

    #[test]
    fn a_title_that_goes_on_behind_the_end_token_is_named_by_the_id_of_the_data() {
        let catalogue = Catalogue::of(&[("B1", "e"), ("007", "e\"ae")]).unwrap();
        let error = Responses::new(&catalogue, &tokenizer(Some("a"))).err();
        let error = error.unwrap().to_string();
        assert!(
            error.starts_with(
                "the title of item \"007\" (\"e\\\"ae\") continues where that of item \"B1\""
            ),
            "{error}"
        );
    }

    #[test]
    fn a_trie_that_numbers_the_items_otherwise_is_of_the_same_catalogue() {
        let catalogue = Catalogue::of_titles(&["Emma", "Sea", "Sea"]).unwrap();
        let responses = Responses::new(&catalogue, &tokenizer(None)).unwrap();
        let trie = |numbers: &[u64]| {
            let paths = (0..3).map(|item| responses.path(item).unwrap());
            TokenTrie::new(numbers.iter().copied().zip(paths)).unwrap()
        };
        responses.check_same(&trie(&[30, 7, 5])).unwrap();
        assert!(responses.check_same(&trie(&[30, 7])).is_err());
    }

    #[test]
    fn the_trie_that_a_run_keeps_is_used_where_it_is_that_of_the_catalogue() {
        let catalogue = Catalogue::of_titles(&["Emma", "Sea", "Sea", "Mass"]).unwrap();
        let tokenizer = tokenizer(None);
        let made = Responses::new(&catalogue, &tokenizer).unwrap();
        let paths: Vec<Vec<u32>> = (0..4).map(|item| made.path(item).unwrap()).collect();
        for (path, item) in paths.iter().zip(catalogue.items()) {
            let mut expected = tokenizer.encode(&Prompt::response(&item.title)).unwrap();
            expected.push(tokenizer.end());
            assert_eq!(*path, expected);
        }
        let of_run = |numbers: [u64; 4]| {
            let trie = TokenTrie::new(numbers.into_iter().zip(&paths)).unwrap();
            Responses::of_run(trie, &catalogue, &tokenizer)
        };
        // As it is kept, and by other numbers.
        for numbers in [[0, 1, 2, 3], [30, 7, 5, 100]] {
            let kept = of_run(numbers).unwrap();
            assert!((0..4).all(|item| kept.path(item).unwrap() == paths[item as usize]));
            assert_eq!(kept.leaf(1).unwrap(), kept.leaf(2).unwrap());
            assert!(kept.leaf(4).is_err());
        }
        // The tokens of other titles.
        let other = Catalogue::of_titles(&["Emma", "Sea", "Sea", "Mess"]).unwrap();
        let refused = Responses::of_run(made.trie().clone(), &other, &tokenizer).err();
        assert!(refused.unwrap().to_string().contains("another catalogue"));
    }
}
