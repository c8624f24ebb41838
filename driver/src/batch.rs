//! Several rows side by side.

use anyhow::Result;
use candle_core::{Device, Tensor};
use candle_trie::{Rows, TokenTrie};

use crate::responses::Example;

/// Prompts with their responses, padded on the right.
pub struct Batch {
    /// `[rows, tokens]`. The last token of a response is only predicted, never read.
    pub tokens: Tensor,
    /// Real tokens, padding left out.
    pub token_count: usize,
    labels: Vec<Vec<i64>>,
    /// Where each label is predicted from, in the flattened tokens: `[rows · longest response]`.
    positions: Tensor,
}

impl Batch {
    /// Lays out examples. What stands in the padding does not matter.
    pub fn new(examples: &[&Example]) -> Result<Self> {
        let length = |example: &Example| example.prompt.len() + example.response.len() - 1;
        let width = examples
            .iter()
            .map(|example| length(example))
            .max()
            .unwrap_or(0);
        let longest = examples
            .iter()
            .map(|example| example.response.len())
            .max()
            .unwrap_or(0);
        let mut tokens = Vec::with_capacity(examples.len() * width);
        let mut positions = Vec::with_capacity(examples.len() * longest);
        for (row, example) in examples.iter().enumerate() {
            let read = example
                .prompt
                .iter()
                .chain(&example.response)
                .take(length(example));
            tokens.extend(read);
            tokens.resize((row + 1) * width, 0);
            let first = row * width + example.prompt.len() - 1;
            positions.extend(
                (0..longest).map(|label| (first + label.min(example.response.len() - 1)) as u32),
            );
        }
        Ok(Self {
            tokens: Tensor::from_vec(tokens, (examples.len(), width), &Device::Cpu)?,
            token_count: examples.iter().map(|example| length(example)).sum(),
            labels: examples
                .iter()
                .map(|example| example.response.iter().map(|&token| token.into()).collect())
                .collect(),
            positions: Tensor::new(positions, &Device::Cpu)?,
        })
    }

    /// The rows that count, for hidden states or logits that [`Batch::response_hidden`] has picked.
    pub fn rows(&self, trie: &TokenTrie) -> Result<Rows> {
        Ok(Rows::from_shifted(trie, &self.labels)?)
    }

    /// The hidden states that predict the responses, `[rows, longest response, hidden]`: the head is not computed
    /// anywhere else.
    pub fn response_hidden(&self, hidden: &Tensor) -> Result<Tensor> {
        let (rows, tokens, width) = hidden.dims3()?;
        let flat = hidden.reshape((rows * tokens, width))?;
        let picked = flat.index_select(&self.positions, 0)?;
        Ok(picked.reshape((rows, self.positions.elem_count() / rows.max(1), width))?)
    }
}
