//! The catalogue in tokens: what a model may answer, and the trie of all answers.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use candle_trie::TokenTrie;

use crate::{
    catalogue::{Catalogue, Interaction},
    prompt::Prompt,
    tokenizer::TextTokenizer,
};

/// The tokens of every item's response, end token included.
pub struct Responses {
    paths: HashMap<u64, Vec<u32>>,
    trie: TokenTrie,
}

/// One row in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// What the model reads.
    pub prompt: Vec<u32>,
    /// What it should answer, end token included.
    pub response: Vec<u32>,
    /// How many tokens of the response there are up to the last that was one of several: what comes after them needs
    /// no model.
    pub chosen: usize,
    /// The item that the response names.
    pub target: u64,
}

impl Example {
    /// How many tokens the model reads, the response among them.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.response.len()
    }
}

impl Responses {
    /// Tokenizes every title of a catalogue.
    pub fn new(catalogue: &Catalogue, tokenizer: &TextTokenizer) -> Result<Self> {
        let mut paths = HashMap::with_capacity(catalogue.items().len());
        for item in catalogue.items() {
            let mut path = tokenizer.encode(&Prompt::response(&item.title))?;
            if path.is_empty() {
                bail!(
                    "the title of item {}, {:?}, tokenizes to nothing",
                    item.id,
                    item.title
                );
            }
            path.push(tokenizer.end());
            paths.insert(item.id, path);
        }
        let trie = TokenTrie::new(paths.iter().map(|(&id, path)| (id, path)))?;
        Ok(Self { paths, trie })
    }

    /// The trie of all responses.
    pub fn trie(&self) -> &TokenTrie {
        &self.trie
    }

    /// Fails where a checkpoint's trie is not the trie of this catalogue.
    pub fn check_same(&self, trie: &TokenTrie) -> Result<()> {
        ensure!(
            &self.trie == trie,
            "the checkpoint was trained on another catalogue: its trie has {} items and {} nodes, this one {} and {}",
            trie.item_count(),
            trie.node_count(),
            self.trie.item_count(),
            self.trie.node_count()
        );
        Ok(())
    }

    /// The tokens of an item's response.
    pub fn path(&self, item: u64) -> Result<&[u32]> {
        let path = self
            .paths
            .get(&item)
            .with_context(|| format!("item {item} is not in the catalogue"))?;
        Ok(path)
    }

    /// The tokens of all responses, in no order.
    pub fn paths(&self) -> impl Iterator<Item = &[u32]> {
        self.paths.values().map(Vec::as_slice)
    }

    /// The leaf of an item: items with one title share it.
    pub fn leaf(&self, item: u64) -> Result<u32> {
        self.trie
            .walk(self.path(item)?)
            .with_context(|| format!("item {item} is not in the trie"))
    }

    /// One row in tokens.
    pub fn example(
        &self,
        interaction: &Interaction,
        catalogue: &Catalogue,
        prompt: &Prompt,
        tokenizer: &TextTokenizer,
    ) -> Result<Example> {
        let titles = interaction
            .history
            .iter()
            .filter_map(|&item| catalogue.title(item));
        let response = self.path(interaction.target)?.to_vec();
        Ok(Example {
            prompt: tokenizer.encode_prompt(&prompt.text(titles))?,
            chosen: chosen(&self.trie, &response),
            response,
            target: interaction.target,
        })
    }
}

/// How many tokens of a response there are up to the last that was one of several.
pub fn chosen(trie: &TokenTrie, response: &[u32]) -> usize {
    let mut node = Some(trie.root());
    let mut chosen = 0;
    for (index, &token) in response.iter().enumerate() {
        let Some(parent) = node else { break };
        if trie.children(parent).len() > 1 {
            chosen = index + 1;
        }
        node = trie.child(parent, token);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unary_tail_begins_after_the_last_choice() {
        let trie = TokenTrie::new([(0, vec![1, 2, 3, 9]), (1, vec![1, 4, 5, 9])]).unwrap();
        assert_eq!(chosen(&trie, &[1, 2, 3, 9]), 2);
        let single = TokenTrie::new([(0, vec![1, 2, 9])]).unwrap();
        assert_eq!(chosen(&single, &[1, 2, 9]), 0);
    }
}
