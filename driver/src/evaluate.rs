//! Evaluation: beam search over the trie, and the item NLL.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_trie::{
    BeamSearch, Convention, Found, MaskedSoftmaxLoss, Reduction, Temperature, TokenTrie,
};

use crate::{
    batch::{Batch, Reading, longest_response, response_rows},
    model::Llama,
    progress::Progress,
    ranking::UserResult,
    responses::Example,
};

/// How well a model recommends.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// What came of every user, in the order of the examples: the place where beam search put the target, and the item
    /// NLL over the softmax that the trie masks.
    pub users: Vec<UserResult>,
    /// How many users were evaluated by second.
    pub users_per_second: f64,
}

/// Items that were recommended.
#[derive(Clone, Debug, PartialEq)]
pub struct Recommendation {
    /// Ids of the items of one title.
    pub items: Vec<u64>,
    /// Of that title, over the catalogue.
    pub probability: f64,
}

/// Evaluates models over one trie.
pub struct Evaluator<'a> {
    /// The trie of all responses.
    pub trie: &'a TokenTrie,
    /// Beams of a search.
    pub beams: usize,
    /// Users evaluated side by side.
    pub batch_size: usize,
    /// The temperature of the softmax: that of training.
    pub temperature: f64,
}

impl Evaluator<'_> {
    /// Evaluates a model on examples.
    pub fn evaluate(&self, label: &str, model: &Llama, examples: &[Example]) -> Result<Evaluation> {
        let loss = self.row_losses()?;
        let mut users = Vec::with_capacity(examples.len());
        let mut progress = Progress::new(label, examples.len());
        let (order, by_length) = by_length(examples);
        for examples in by_length.chunks(self.batch_size) {
            let item_nlls = self.item_nlls(model, &loss, examples)?;
            let places = self.places(model, examples)?;
            let results = places.into_iter().zip(item_nlls);
            users.extend(results.map(|(place, item_nll)| UserResult { place, item_nll }));
            progress.advance(examples.len());
        }
        let seconds = progress.finish().as_secs_f64();
        let mut users: Vec<(usize, UserResult)> = order.into_iter().zip(users).collect();
        users.sort_unstable_by_key(|(place, _)| *place);
        Ok(Evaluation {
            users_per_second: users.len() as f64 / seconds,
            users: users.into_iter().map(|(_, user)| user).collect(),
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

    /// What a model recommends after a prompt, the most probable first.
    pub fn recommend(&self, model: &Llama, prompt: &[u32]) -> Result<Vec<Recommendation>> {
        let search = self.search(model, &[prompt])?;
        let recommendation = |found: Found| Recommendation {
            items: found.items.to_vec(),
            probability: found.log_probability.exp(),
        };
        Ok(search.found(0).into_iter().map(recommendation).collect())
    }

    /// A loss that keeps the −ln p of every row apart.
    fn row_losses(&self) -> Result<MaskedSoftmaxLoss> {
        let convention = Convention {
            reduction: Reduction::None,
            times_temperature: false,
        };
        let loss = MaskedSoftmaxLoss::new(self.trie, Temperature::fixed(self.temperature))?;
        Ok(loss.with_convention(convention)?)
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
        let output = loss.evaluate_linear(&hidden, model.head(), &rows)?;
        let item_nlls = output.loss.to_dtype(DType::F64)?.sum(1)?;
        Ok(item_nlls.to_vec1()?)
    }

    /// The place of each target among the items that beam search found.
    fn places(&self, model: &Llama, examples: &[&Example]) -> Result<Vec<Option<usize>>> {
        let prompts: Vec<&[u32]> = (examples.iter())
            .map(|example| example.prompt.as_slice())
            .collect();
        let search = self.search(model, &prompts)?;
        let place = |(user, example): (usize, &&Example)| {
            search
                .found(user)
                .iter()
                .position(|found| found.items.contains(&example.target))
        };
        Ok(examples.iter().enumerate().map(place).collect())
    }

    fn search(&self, model: &Llama, prompts: &[&[u32]]) -> Result<BeamSearch> {
        let mut search = BeamSearch::new(self.trie, prompts.len(), self.beams, self.temperature)?;
        let (tokens, lengths) = padded(prompts, model.head().device())?;
        let (mut hidden, mut cache) = model.read_prompts(&tokens, &lengths)?;
        while let Some(step) = search.step(&hidden.matmul(&model.head().t()?)?)? {
            cache.continue_from(&step.parents)?;
            hidden = model.step(&step.tokens, &mut cache)?;
        }
        Ok(search)
    }
}

/// Examples from the shortest prompt to the longest, and their places: batches of them need little padding.
fn by_length(examples: &[Example]) -> (Vec<usize>, Vec<&Example>) {
    let mut by_length: Vec<(usize, &Example)> = examples.iter().enumerate().collect();
    by_length.sort_by_key(|(_, example)| example.prompt.len());
    by_length.into_iter().unzip()
}

/// Prompts padded on the right, and their lengths.
fn padded(prompts: &[&[u32]], device: &Device) -> Result<(Tensor, Vec<u32>)> {
    let longest = prompts.iter().map(|prompt| prompt.len()).max();
    let longest = longest.context("no prompt")?;
    let mut tokens = Vec::with_capacity(prompts.len() * longest);
    for (row, prompt) in prompts.iter().enumerate() {
        tokens.extend_from_slice(prompt);
        tokens.resize((row + 1) * longest, 0);
    }
    let lengths = prompts.iter().map(|prompt| prompt.len() as u32).collect();
    let tokens = Tensor::from_vec(tokens, (prompts.len(), longest), device)?;
    Ok((tokens, lengths))
}
