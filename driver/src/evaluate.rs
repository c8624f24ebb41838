//! Evaluation: beam search over the trie, and the item NLL.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use candle_trie::{BeamSearch, Convention, MaskedSoftmaxLoss, Reduction, Temperature, TokenTrie};

use crate::{
    batch::{Batch, Reading, longest_response, response_rows},
    model::Llama,
    progress::Progress,
    ranking::Ranking,
    responses::Example,
};

/// How well a model recommends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Where beam search put the targets.
    pub ranking: Ranking,
    /// Mean −ln p of the target items, in nats, over the softmax that the trie masks.
    pub item_nll: f64,
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
        let loss = self.sum_of_item_nlls()?;
        let mut places = Vec::with_capacity(examples.len());
        let mut item_nll = 0.0;
        let mut progress = Progress::new(label, examples.len());
        for examples in by_length(examples).chunks(self.batch_size) {
            item_nll += self.item_nll(model, &loss, examples)?;
            places.extend(self.places(model, examples)?);
            progress.advance(examples.len());
        }
        progress.finish();
        Ok(Evaluation {
            ranking: Ranking::of(&places),
            item_nll: item_nll / examples.len().max(1) as f64,
        })
    }

    /// The mean item NLL alone, which needs no search.
    pub fn mean_item_nll(&self, model: &Llama, examples: &[Example]) -> Result<f64> {
        let loss = self.sum_of_item_nlls()?;
        let mut sum = 0.0;
        for examples in by_length(examples).chunks(self.batch_size) {
            sum += self.item_nll(model, &loss, examples)?;
        }
        Ok(sum / examples.len().max(1) as f64)
    }

    /// The loss whose value is the sum of the item NLLs of its rows.
    fn sum_of_item_nlls(&self) -> Result<MaskedSoftmaxLoss> {
        let convention = Convention {
            reduction: Reduction::Sum,
            times_temperature: false,
        };
        let loss = MaskedSoftmaxLoss::new(self.trie, Temperature::fixed(self.temperature))?;
        Ok(loss.with_convention(convention)?)
    }

    fn item_nll(
        &self,
        model: &Llama,
        loss: &MaskedSoftmaxLoss,
        examples: &[&Example],
    ) -> Result<f64> {
        let longest = longest_response(examples);
        let device = model.head().device();
        let batch = Batch::new(examples, longest, Reading::Chosen, device)?;
        let hidden = batch.response_hidden(&model.hidden(&batch.tokens)?.detach())?;
        let rows = response_rows(examples, self.trie)?;
        let output = loss.evaluate_linear(&hidden, model.head(), &rows)?;
        Ok(output.loss.to_scalar::<f32>()?.into())
    }

    /// The place of each target among the items that beam search found.
    fn places(&self, model: &Llama, examples: &[&Example]) -> Result<Vec<Option<usize>>> {
        let search = self.search(model, examples)?;
        let place = |(user, example): (usize, &&Example)| {
            search
                .found(user)
                .iter()
                .position(|found| found.items.contains(&example.target))
        };
        Ok(examples.iter().enumerate().map(place).collect())
    }

    fn search(&self, model: &Llama, examples: &[&Example]) -> Result<BeamSearch> {
        let mut search = BeamSearch::new(self.trie, examples.len(), self.beams, self.temperature)?;
        let (tokens, lengths) = prompts(examples, model.head().device())?;
        let (mut hidden, mut cache) = model.read_prompts(&tokens, &lengths)?;
        while let Some(step) = search.step(&hidden.matmul(&model.head().t()?)?)? {
            cache.continue_from(&step.parents)?;
            hidden = model.step(&step.tokens, &mut cache)?;
        }
        Ok(search)
    }
}

/// Examples from the shortest prompt to the longest: batches of them need little padding.
fn by_length(examples: &[Example]) -> Vec<&Example> {
    let mut by_length: Vec<&Example> = examples.iter().collect();
    by_length.sort_by_key(|example| example.prompt.len());
    by_length
}

/// Prompts padded on the right, and their lengths.
fn prompts(examples: &[&Example], device: &Device) -> Result<(Tensor, Vec<u32>)> {
    let longest = examples
        .iter()
        .map(|example| example.prompt.len())
        .max()
        .context("no example")?;
    let mut tokens = Vec::with_capacity(examples.len() * longest);
    for (row, example) in examples.iter().enumerate() {
        tokens.extend_from_slice(&example.prompt);
        tokens.resize((row + 1) * longest, 0);
    }
    let lengths = examples
        .iter()
        .map(|example| example.prompt.len() as u32)
        .collect();
    Ok((
        Tensor::from_vec(tokens, (examples.len(), longest), device)?,
        lengths,
    ))
}
