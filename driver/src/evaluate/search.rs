//! Searches the catalogue for what a model recommends.

use std::fmt;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use candle_trie::{BeamSearch, ExactSearch, Expansion, Normalisation, SearchResult, TokenTrie};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::{
    console::{finite, positive},
    model::{Cache, Llama, LmHead, Sequence},
    train::workers::Workers,
};

/// Kinds of search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SearchKind {
    /// Beam search, which may prune a good title.
    Beam,
    /// Best-first search, which finds the true top.
    Exact,
}

impl fmt::Display for SearchKind {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::Beam => "beam",
            Self::Exact => "exact",
        })
    }
}

/// Sets of tokens that probabilities are normalised over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NormaliseOver {
    /// The tokens that continue an item: probabilities of items.
    Trie,
    /// The whole vocabulary, masked afterwards, as Hugging Face's generate does.
    Vocabulary,
}

/// Options of a search.
#[derive(Args, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchSettings {
    /// The search. exact runs beside beam, and says for how many users beam search missed an item of the true top, and
    /// for how many it pruned the target
    #[arg(long, value_enum, default_value = "beam")]
    pub search: SearchKind,

    /// Beams of the search, or items of an exact one: HR@K and NDCG@K need at least K
    #[arg(long, default_value_t = 20, value_parser = positive)]
    pub beams: usize,

    /// The tokens over which a beam search normalises probabilities
    #[arg(long, value_enum, default_value = "trie")]
    pub normalise: NormaliseOver,

    /// Rank the titles of a beam search by log-probability ÷ length^PENALTY
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "PENALTY",
        allow_negative_numbers = true,
        value_parser = finite
    )]
    pub length_penalty: f64,
}

impl Default for SearchSettings {
    fn default() -> Self {
        Self {
            search: SearchKind::Beam,
            beams: 20,
            normalise: NormaliseOver::Trie,
            length_penalty: 0.0,
        }
    }
}

impl SearchSettings {
    /// Refuses what no search does.
    pub fn check(&self) -> Result<()> {
        let by_probability = self.normalise == NormaliseOver::Trie && self.length_penalty == 0.0;
        ensure!(
            self.search == SearchKind::Beam || by_probability,
            "--search exact ranks by the probability over the trie: remove --normalise and --length-penalty"
        );
        Ok(())
    }
}

/// Searches a trie with a model.
pub struct Searcher<'a> {
    trie: &'a TokenTrie,
    model: &'a Llama,
    head: LmHead,
    settings: SearchSettings,
    temperature: f64,
    workers: Workers,
}

/// The result of a search for some users.
pub struct Recommended {
    /// The items that were found for each user, best first.
    pub found: Vec<Vec<SearchResult>>,
    /// Number of tokens that the model read. Padding does not count, and the longest common prefix of the prompts
    /// counts once.
    pub model_tokens: usize,
}

impl<'a> Searcher<'a> {
    /// Searches with the model as it is now, at this temperature of the softmax.
    pub fn new(
        trie: &'a TokenTrie,
        model: &'a Llama,
        settings: SearchSettings,
        temperature: f64,
    ) -> Result<Self> {
        settings.check()?;
        Ok(Self {
            trie,
            model,
            head: model.head()?.frozen(trie)?,
            settings,
            temperature,
            workers: Workers::new(model.device())?,
        })
    }

    /// Returns the best items for each prompt, except those of `excluded` (one list for each prompt, or no list at
    /// all). The workers share the users: it is best if neighbours' prompts are of much the same length.
    pub fn recommend(&self, prompts: &[&[u32]], excluded: &[Vec<u64>]) -> Result<Recommended> {
        let workers = self.workers.count();
        if workers == 1 || prompts.len() == 1 {
            return self.search(prompts, excluded);
        }
        let shares = self.workers.map(workers.min(prompts.len()), |worker| {
            let prompts: Vec<_> = every(prompts, worker, workers).copied().collect();
            let excluded: Vec<_> = every(excluded, worker, workers).cloned().collect();
            self.search(&prompts, &excluded)
        })?;
        let model_tokens = shares.iter().map(|share| share.model_tokens).sum();
        let mut found: Vec<_> = shares
            .into_iter()
            .map(|share| share.found.into_iter())
            .collect();
        Ok(Recommended {
            found: (0..prompts.len())
                .filter_map(|user| found[user % workers].next())
                .collect(),
            model_tokens,
        })
    }

    fn search(&self, prompts: &[&[u32]], excluded: &[Vec<u64>]) -> Result<Recommended> {
        match self.settings.search {
            SearchKind::Beam => self.beam(prompts, excluded),
            SearchKind::Exact => self.exact(prompts, excluded),
        }
    }

    fn beam(&self, prompts: &[&[u32]], excluded: &[Vec<u64>]) -> Result<Recommended> {
        let normalise = match self.settings.normalise {
            NormaliseOver::Trie => Normalisation::Trie,
            NormaliseOver::Vocabulary => Normalisation::Vocabulary,
        };
        let mut search = BeamSearch::new(
            self.trie,
            prompts.len(),
            self.settings.beams,
            self.temperature,
        )?
        .with_normalisation(normalise)
        .with_length_penalty(self.settings.length_penalty)?;
        if !excluded.is_empty() {
            search = search.exclude_items(excluded)?;
        }
        let mut reader = Reader::new(self.model, prompts, search.common_prefix())?;
        let (mut hidden, mut sequences) = reader.prompts(&search.beam_users())?;
        while let Some(step) = search.step((&hidden, &self.head))? {
            sequences = (step.parents.iter())
                .map(|&parent| sequences[parent as usize].clone())
                .collect();
            hidden = reader.read(&mut sequences, &step.tokens)?;
        }
        Ok(Recommended {
            found: (0..prompts.len())
                .map(|user| search.results(user))
                .collect(),
            model_tokens: reader.tokens,
        })
    }

    fn exact(&self, prompts: &[&[u32]], excluded: &[Vec<u64>]) -> Result<Recommended> {
        let mut search = ExactSearch::new(
            self.trie,
            prompts.len(),
            self.settings.beams,
            self.temperature,
        )?;
        if !excluded.is_empty() {
            search = search.exclude_items(excluded)?;
        }
        let mut reader = Reader::new(self.model, prompts, search.common_prefix())?;
        let mut read: Vec<Sequence> = Vec::new();
        while let Some(Expansion {
            users,
            parents,
            tokens,
        }) = search.next_expansion()
        {
            let hidden = if read.is_empty() {
                let (hidden, sequences) = reader.prompts(&users)?;
                read = sequences;
                hidden
            } else {
                let parent = |parent: &Option<u32>| {
                    let row = parent.context("an expansion begins anew")?;
                    anyhow::Ok(read[row as usize].clone())
                };
                let mut sequences = parents.iter().map(parent).collect::<Result<Vec<_>>>()?;
                let hidden = reader.read(&mut sequences, &tokens)?;
                read.extend(sequences);
                hidden
            };
            search.step((&hidden, &self.head))?;
        }
        Ok(Recommended {
            found: (0..prompts.len())
                .map(|user| search.results(user))
                .collect(),
            model_tokens: reader.tokens,
        })
    }
}

/// Iterates over every `step`-th value, from `first` on.
fn every<T>(values: &[T], first: usize, step: usize) -> impl Iterator<Item = &T> {
    values.iter().skip(first).step_by(step)
}

/// A model with its cache for some users.
struct Reader<'a> {
    model: &'a Llama,
    cache: Cache,
    /// The last hidden state of each prompt, `[users, hidden]`.
    last: Tensor,
    /// Number of tokens that were read so far.
    tokens: usize,
}

impl<'a> Reader<'a> {
    /// Reads the prompts, each followed by the `prefix` that all items share.
    fn new(model: &'a Llama, prompts: &[&[u32]], prefix: &[u32]) -> Result<Self> {
        let prompts: Vec<Vec<u32>> = (prompts.iter())
            .map(|prompt| [prompt, prefix].concat())
            .collect();
        let (last, cache) = model.read_prompts(&prompts)?;
        Ok(Self {
            model,
            last,
            tokens: cache.prompt_tokens(),
            cache,
        })
    }

    /// Returns the last hidden states of the prompts of some users, and their sequences in the cache.
    fn prompts(&self, users: &[u32]) -> Result<(Tensor, Vec<Sequence>)> {
        let prompts = self.cache.prompts();
        let of_user = |&user: &u32| prompts[user as usize].clone();
        let index = Tensor::new(users, self.last.device())?;
        Ok((
            self.last.index_select(&index, 0)?,
            users.iter().map(of_user).collect(),
        ))
    }

    /// Reads on behind sequences: the hidden states of their last tokens.
    fn read(&mut self, sequences: &mut [Sequence], tokens: &[Vec<u32>]) -> Result<Tensor> {
        self.tokens += tokens.iter().map(Vec::len).sum::<usize>();
        self.model.step(sequences, tokens, &mut self.cache)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::model::LlamaConfig;

    #[test]
    fn users_who_are_shared_among_workers_get_what_each_gets_alone() {
        let config = LlamaConfig {
            vocab_size: 12,
            hidden_size: 8,
            intermediate_size: 12,
            ..LlamaConfig::default()
        };
        let model = Llama::random(config, 3, DType::F64, &Device::Cpu).unwrap();
        let items = (0..40).map(|item| (item, vec![1 + item as u32 % 5, 6 + item as u32 / 8, 0]));
        let trie = TokenTrie::new(items).unwrap();
        let prompts: Vec<Vec<u32>> = (0..7)
            .map(|user| [&[3, 4][..], &vec![user; 1 + user as usize % 4]].concat())
            .collect();
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let excluded: Vec<Vec<u64>> = (0..7).map(|user| (user..40).step_by(3).collect()).collect();
        for (search, normalise) in [
            (SearchKind::Beam, NormaliseOver::Trie),
            (SearchKind::Beam, NormaliseOver::Vocabulary),
            (SearchKind::Exact, NormaliseOver::Trie),
        ] {
            let settings = SearchSettings {
                search,
                normalise,
                beams: 4,
                ..SearchSettings::default()
            };
            let searcher = Searcher::new(&trie, &model, settings, 1.0).unwrap();
            let together = searcher.recommend(&prompts, &excluded).unwrap().found;
            assert_eq!(together.len(), prompts.len());
            for (user, together) in together.iter().enumerate() {
                let alone = searcher.recommend(&prompts[user..=user], &excluded[user..=user]);
                let alone = &alone.unwrap().found[0];
                assert_eq!(together.len(), alone.len());
                for (together, alone) in together.iter().zip(alone) {
                    assert_eq!(together.items, alone.items, "user {user}");
                    assert!((together.score - alone.score).abs() < 1e-12);
                }
            }
        }
    }
}
