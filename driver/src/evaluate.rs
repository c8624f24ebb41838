//! Evaluation: beam search over the trie, and the item NLL.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use candle_trie::{BeamSearch, Convention, MaskedSoftmaxLoss, Reduction, Temperature, TokenTrie};

use crate::{
    batch::{Batch, longest_response, response_rows},
    model::Llama,
    progress::Progress,
    ranking::Ranking,
    responses::Example,
    train::logits,
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
        let convention = Convention {
            reduction: Reduction::Sum,
            times_temperature: false,
        };
        let loss = MaskedSoftmaxLoss::new(self.trie, Temperature::fixed(self.temperature))?
            .with_convention(convention)?;
        let mut places = Vec::with_capacity(examples.len());
        let mut item_nll = 0.0;
        let mut progress = Progress::new(label, examples.len());
        let mut by_length: Vec<&Example> = examples.iter().collect();
        by_length.sort_by_key(|example| example.prompt.len());
        for examples in by_length.chunks(self.batch_size) {
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

    fn item_nll(
        &self,
        model: &Llama,
        loss: &MaskedSoftmaxLoss,
        examples: &[&Example],
    ) -> Result<f64> {
        let batch = Batch::new(examples, longest_response(examples))?;
        let hidden = batch.response_hidden(&model.hidden(&batch.tokens)?.detach())?;
        let output = loss.evaluate(
            &logits(&hidden, model.head())?,
            &response_rows(examples, self.trie)?,
        )?;
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
        let (tokens, lengths) = prompts(examples)?;
        let (mut hidden, mut cache) = model.read_prompts(&tokens, &lengths)?;
        while let Some(step) = search.step(&hidden.matmul(&model.head().t()?)?)? {
            cache.continue_from(&step.parents)?;
            hidden = model.step(&step.tokens, &mut cache)?;
        }
        Ok(search)
    }
}

/// Prompts padded on the right, and their lengths.
fn prompts(examples: &[&Example]) -> Result<(Tensor, Vec<u32>)> {
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
        Tensor::from_vec(tokens, (examples.len(), longest), &Device::Cpu)?,
        lengths,
    ))
}
