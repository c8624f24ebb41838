//! Evaluates models by beam search over the trie and by the item NLL.

pub mod baselines;
pub mod comparison;
pub mod decoding;
pub mod earlier;
pub mod ranking;
pub mod ranks;
pub mod search;

use std::time::Instant;

use anyhow::Result;
use candle_core::DType;
use candle_trie::{MaskedSoftmaxLoss, Reduction, SearchResult, TokenTrie};
use serde::{Deserialize, Serialize};

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
    exchange::{self, Exchange, share},
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
    /// The processes that share the users. Each batch is that of one process, and so has the same results.
    pub exchange: &'a dyn Exchange,
}

impl Evaluator<'_> {
    /// Evaluates a model on examples.
    pub fn evaluate(&self, label: &str, model: &Llama, examples: &[Example]) -> Result<Evaluation> {
        let loss = self.row_losses()?;
        let searcher = Searcher::new(self.trie, model, self.search, self.temperature)?;
        let (order, by_length) = by_length(examples);
        let batches: Vec<&[&Example]> = by_length.chunks(self.batch_size).collect();
        let mut own = SearchedBatches::default();
        let own_users = share(self.exchange, &batches).map(|batch| batch.len());
        let mut progress = Progress::new(label, own_users.sum());
        for examples in share(self.exchange, &batches) {
            let item_nlls = self.item_nlls(model, &loss, examples)?;
            let prompts: Vec<&[u32]> = examples.iter().map(|example| &example.prompt[..]).collect();
            let begun = Instant::now();
            let recommended = searcher.recommend(&prompts, &[])?;
            own.seconds += begun.elapsed().as_secs_f64();
            own.model_tokens += recommended.model_tokens;
            own.batches.push(
                examples
                    .iter()
                    .zip(recommended.found)
                    .zip(item_nlls)
                    .map(|((example, found), item_nll)| {
                        let place = place(&found, example.target);
                        SearchedUser::new(UserResult { place, item_nll }, &found)
                    })
                    .collect(),
            );
            progress.advance(examples.len());
        }
        progress.finish();
        let ranks = exchange::gather_json(self.exchange, own)?;
        // Ranks search side by side: the slowest tells how long it took.
        let seconds = ranks.iter().map(|rank| rank.seconds).fold(0.0, f64::max);
        let model_tokens: usize = ranks.iter().map(|rank| rank.model_tokens).sum();
        let mut ranks: Vec<_> = ranks
            .into_iter()
            .map(|rank| rank.batches.into_iter())
            .collect();
        let users =
            (0..batches.len()).filter_map(|batch| ranks[batch % self.exchange.size()].next());
        let mut users: Vec<_> = order.into_iter().zip(users.flatten()).collect();
        users.sort_unstable_by_key(|(place, _)| *place);
        let (users, recommended): (Vec<_>, _) =
            users.into_iter().map(|(_, user)| user.into_parts()).unzip();
        Ok(Evaluation {
            users_per_second: users.len() as f64 / seconds,
            model_tokens: model_tokens as f64 / users.len().max(1) as f64,
            users,
            recommended,
        })
    }

    /// Computes the mean item NLL alone, which needs no search.
    pub fn mean_item_nll(&self, model: &Llama, examples: &[Example]) -> Result<f64> {
        let loss = self.row_losses()?;
        let by_length = by_length(examples).1;
        let batches: Vec<&[&Example]> = by_length.chunks(self.batch_size).collect();
        let mut own = vec![0.0; batches.len()];
        let numbers: Vec<usize> = (0..batches.len()).collect();
        for &batch in share(self.exchange, &numbers) {
            own[batch] = self
                .item_nlls(model, &loss, batches[batch])?
                .iter()
                .sum::<f64>();
        }
        let gathered = self.exchange.gather(bytemuck::cast_slice(&own))?;
        let ranks = gathered
            .iter()
            .map(|bytes| bytemuck::pod_collect_to_vec(bytes));
        let ranks: Vec<Vec<f64>> = ranks.collect();
        let sum: f64 = numbers
            .iter()
            .map(|&batch| ranks[batch % ranks.len()][batch])
            .sum();
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
        let batch = Batch::new(examples, longest, Reading::Chosen, model.device())?;
        let hidden = batch.response_hidden(&model.hidden(&batch.tokens)?)?;
        let rows = response_rows(examples, self.trie)?;
        let output = loss.evaluate((&hidden, &model.head()?), &rows)?;
        let item_nlls = output.loss.to_dtype(DType::F64)?.sum(1)?;
        Ok(item_nlls.to_vec1()?)
    }
}

/// The results of one rank for its share of the batches of users.
#[derive(Default, Serialize, Deserialize)]
struct SearchedBatches {
    batches: Vec<Vec<SearchedUser>>,
    model_tokens: usize,
    seconds: f64,
}

/// The result of one user. Floats are held as their bits, so that they travel unchanged.
#[derive(Serialize, Deserialize)]
struct SearchedUser {
    place: Option<usize>,
    item_nll: u64,
    /// Items, log-probability and score of each title that was found.
    found: Vec<(Vec<u64>, u64, u64)>,
}

impl SearchedUser {
    fn new(result: UserResult, found: &[SearchResult]) -> Self {
        let found = found.iter().map(|found| {
            (
                found.items.clone(),
                found.log_probability.to_bits(),
                found.score.to_bits(),
            )
        });
        Self {
            place: result.place,
            item_nll: result.item_nll.to_bits(),
            found: found.collect(),
        }
    }

    fn into_parts(self) -> (UserResult, Vec<SearchResult>) {
        let found = self
            .found
            .into_iter()
            .map(|(items, log_probability, score)| SearchResult {
                items,
                log_probability: f64::from_bits(log_probability),
                score: f64::from_bits(score),
            });
        let result = UserResult {
            place: self.place,
            item_nll: f64::from_bits(self.item_nll),
        };
        (result, found.collect())
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
