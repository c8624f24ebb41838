//! Evaluation: beam search over the trie, and the item NLL.

pub mod baselines;
pub mod comparison;
pub mod decoding;
pub mod ranking;
pub mod ranks;
pub mod search;

use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::DType;
use candle_trie::{MaskedSoftmaxLoss, Reduction, SearchResult, TokenTrie};

use crate::{
    data::{
        batch::{Batch, Reading, longest_response, response_rows},
        responses::Example,
    },
    evaluate::{
        ranking::UserResult,
        search::{SearchSettings, Searcher},
    },
    model::Llama,
    train::progress::Progress,
};

/// How well a model recommends.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// What came of every user, in the order of the examples: the place where the search put the target, and the item
    /// NLL over the softmax that the trie masks.
    pub users: Vec<UserResult>,
    /// What each user was recommended, best first.
    pub recommended: Vec<Vec<SearchResult>>,
    /// Tokens that the model read for a user's search, as a mean: padding left out, and what prompts read together begin
    /// with in common counted once.
    pub model_tokens: f64,
    /// How many users were recommended to by second; their item NLLs are not in the time.
    pub users_per_second: f64,
}

/// Evaluates models over one trie.
pub struct Evaluator<'a> {
    /// The trie of all responses.
    pub trie: &'a TokenTrie,
    /// How the catalogue is searched.
    pub search: SearchSettings,
    /// Users evaluated side by side.
    pub batch_size: usize,
    /// The temperature of the softmax: that of training.
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

    /// The mean item NLL alone, which needs no search.
    pub fn mean_item_nll(&self, model: &Llama, examples: &[Example]) -> Result<f64> {
        let loss = self.row_losses()?;
        let mut sum = 0.0;
        for examples in by_length(examples).1.chunks(self.batch_size) {
            sum += self.item_nlls(model, &loss, examples)?.iter().sum::<f64>();
        }
        Ok(sum / examples.len().max(1) as f64)
    }

    /// A loss that keeps the −ln p of every row apart.
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

/// The place of an item among those that a search found.
fn place(found: &[SearchResult], item: u64) -> Option<usize> {
    found.iter().position(|found| found.items.contains(&item))
}

/// Examples from the shortest prompt to the longest, and their places: batches of them need little padding.
fn by_length(examples: &[Example]) -> (Vec<usize>, Vec<&Example>) {
    let mut by_length: Vec<(usize, &Example)> = examples.iter().enumerate().collect();
    by_length.sort_by_key(|(_, example)| example.prompt.len());
    by_length.into_iter().unzip()
}
