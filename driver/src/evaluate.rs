//! Evaluates models by beam search over the trie and by the item NLL.

pub mod baselines;
pub mod comparison;
pub mod decoding;
pub mod earlier;
pub mod ranking;
pub mod ranks;
pub mod search;

use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::DType;
use candle_trie::{MaskedSoftmaxLoss, Reduction, SearchResult, TokenTrie};

use crate::{
    console::progress::Progress,
    data::{
        batch::{Batch, Reading, longest_response, response_rows},
        examples::Example,
    },
    evaluate::{
        ranking::UserResult,
        search::{SearchSettings, Searcher},
    },
    model::Llama,
};

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The place of each user's target in the list of the search, and its item NLL over the softmax that the trie
    /// masks; in the order of the examples.
    pub users: Vec<UserResult>,
    /// The items that each user was recommended, best first.
    pub recommended: Vec<Vec<SearchResult>>,
    /// Mean number of tokens that the model read to search for one user. Padding does not count, and the longest common
    /// prefix of prompts that are read together counts once.
    pub model_tokens: f64,
    /// Users per second of searching. The time of their item NLLs does not count.
    pub users_per_second: f64,
}

/// Evaluates models over one trie.
pub struct Evaluator<'a> {
    /// The trie of all responses.
    pub trie: &'a TokenTrie,
    /// Options of the search.
    pub search: SearchSettings,
    /// Number of users that are evaluated together.
    pub batch_size: usize,
    /// Temperature of the softmax.
    pub temperature: f64,
}

impl Evaluator<'_> {
    /// Evaluates a model on examples.
    pub fn evaluate(&self, label: &str, model: &Llama, examples: &[Example]) -> Result<Evaluation> {
        let loss = self.row_losses()?;
        let searcher = Searcher::new(self.trie, model, self.search, self.temperature)?;
        let mut users = Vec::with_capacity(examples.len());
        let (mut model_tokens, mut searching) = (0, Duration::ZERO);
        let mut progress = Progress::new(label, examples.len());
        let (order, by_length) = by_length(examples);
        for examples in by_length.chunks(self.batch_size) {
            let item_nlls = self.item_nlls(model, &loss, examples)?;
            let prompts: Vec<&[u32]> = examples.iter().map(|example| &example.prompt[..]).collect();
            let begun = Instant::now();
            let recommended = searcher.recommend(&prompts, &[])?;
            searching += begun.elapsed();
            model_tokens += recommended.model_tokens;
            let found = recommended.found.into_iter().zip(examples).zip(item_nlls);
            users.extend(found.map(|((found, example), item_nll)| {
                let place = place(&found, example.target);
                (UserResult { place, item_nll }, found)
            }));
            progress.advance(examples.len());
        }
        progress.finish();
        let mut users: Vec<_> = order.into_iter().zip(users).collect();
        users.sort_unstable_by_key(|(place, _)| *place);
        let (users, recommended): (Vec<_>, _) = users.into_iter().map(|(_, user)| user).unzip();
        Ok(Evaluation {
            users_per_second: users.len() as f64 / searching.as_secs_f64(),
            model_tokens: model_tokens as f64 / users.len().max(1) as f64,
            users,
            recommended,
        })
    }

    /// Computes the mean item NLL alone, which needs no search.
    pub fn mean_item_nll(&self, model: &Llama, examples: &[Example]) -> Result<f64> {
        let loss = self.row_losses()?;
        let mut sum = 0.0;
        for examples in by_length(examples).1.chunks(self.batch_size) {
            sum += self.item_nlls(model, &loss, examples)?.iter().sum::<f64>();
        }
        Ok(sum / examples.len().max(1) as f64)
    }

    /// Builds a loss that keeps the −ln p of every row apart.
    fn row_losses(&self) -> Result<MaskedSoftmaxLoss> {
        let loss = MaskedSoftmaxLoss::new(self.trie, self.temperature)?;
        Ok(loss.with_reduction(Reduction::None)?)
    }

    fn item_nlls(
        &self,
        model: &Llama,
        loss: &MaskedSoftmaxLoss,
        examples: &[&Example],
    ) -> Result<Vec<f64>> {
        let longest = longest_response(examples);
        let device = model.head().device();
        let batch = Batch::new(examples, longest, Reading::Chosen, device)?;
        let hidden = batch.response_hidden(&model.hidden(&batch.tokens)?.detach())?;
        let rows = response_rows(examples, self.trie)?;
        let output = loss.evaluate((&hidden, model.head()), &rows)?;
        let item_nlls = output.loss.to_dtype(DType::F64)?.sum(1)?;
        Ok(item_nlls.to_vec1()?)
    }
}

/// Returns the place of an item among those that a search found.
fn place(found: &[SearchResult], item: u64) -> Option<usize> {
    found.iter().position(|found| found.items.contains(&item))
}

/// Sorts examples by the length of their prompts, so that batches need little padding, and returns their places with
/// them.
fn by_length(examples: &[Example]) -> (Vec<usize>, Vec<&Example>) {
    let mut by_length: Vec<(usize, &Example)> = examples.iter().enumerate().collect();
    by_length.sort_by_key(|(_, example)| example.prompt.len());
    by_length.into_iter().unzip()
}
