//! Lays out rows side by side in tensors.

use anyhow::Result;
use candle_core::{Device, Tensor};
use candle_trie::{Rows, TokenTrie};

use crate::data::examples::Example;

/// Prompts with their responses, padded on the right.
pub struct Batch {
    /// The tokens, `[rows, tokens]`.
    pub tokens: Tensor,
    /// Number of tokens without padding.
    pub token_count: usize,
    /// Indices of the positions that predict the labels, in the flattened tokens: `[rows · longest response]`.
    positions: Tensor,
}

/// The part of a response that a model reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// All but the last token, which is only predicted.
    Whole,
    /// All before the last token at a branching node, which is only predicted. Under the masked softmax the rows after
    /// it are unary, and have neither loss nor gradient.
    Chosen,
}

impl Reading {
    /// Returns how many tokens of prompt and response a model reads.
    fn length(self, example: &Example) -> usize {
        let predicted = match self {
            Self::Whole => example.response.len(),
            Self::Chosen => example.chosen.max(1),
        };
        example.prompt.len() + predicted - 1
    }
}

impl Batch {
    /// Lays out examples, with room for `longest` labels each. The values in the padding do not matter.
    pub fn new(
        examples: &[&Example],
        longest: usize,
        reading: Reading,
        device: &Device,
    ) -> Result<Self> {
        let width = examples
            .iter()
            .map(|example| reading.length(example))
            .max()
            .unwrap_or(0);
        let mut tokens = Vec::with_capacity(examples.len() * width);
        let mut positions = Vec::with_capacity(examples.len() * longest);
        for (row, example) in examples.iter().enumerate() {
            let length = reading.length(example);
            tokens.extend(example.prompt.iter().chain(&example.response).take(length));
            tokens.resize((row + 1) * width, 0);
            let (first, last) = (example.prompt.len() - 1, length - 1);
            positions
                .extend((0..longest).map(|label| (row * width + (first + label).min(last)) as u32));
        }
        Ok(Self {
            tokens: Tensor::from_vec(tokens, (examples.len(), width), device)?,
            token_count: examples.iter().map(|example| reading.length(example)).sum(),
            positions: Tensor::new(positions, device)?,
        })
    }

    /// Gathers the hidden states that predict the responses, `[rows, longest response, hidden]`. The head is computed
    /// at no other position.
    pub fn response_hidden(&self, hidden: &Tensor) -> Result<Tensor> {
        let (rows, tokens, width) = hidden.dims3()?;
        let flat = hidden.reshape((rows * tokens, width))?;
        let picked = flat.index_select(&self.positions, 0)?;
        Ok(picked.reshape((rows, self.positions.elem_count() / rows.max(1), width))?)
    }
}

/// Returns the number of tokens of the longest response.
pub fn longest_response(examples: &[&Example]) -> usize {
    let lengths = examples.iter().map(|example| example.response.len());
    lengths.max().unwrap_or(0)
}

/// Returns the labelled rows of responses, for the positions that [`Batch::response_hidden`] gathers.
pub fn response_rows(examples: &[&Example], trie: &TokenTrie) -> Result<Rows> {
    let labels = |example: &&Example| example.response.iter().map(|&token| token.into()).collect();
    let labels: Vec<Vec<i64>> = examples.iter().map(labels).collect();
    Ok(Rows::from_shifted(trie, &labels)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(prompt: usize, response: usize, chosen: usize) -> Example {
        Example {
            prompt: vec![7; prompt],
            response: vec![8; response],
            chosen,
            target: 0,
        }
    }

    #[test]
    fn nothing_is_read_beyond_the_longest_that_needs_it() {
        let (short, long) = (example(3, 9, 2), example(5, 4, 4));
        let batch = |reading| Batch::new(&[&short, &long], 9, reading, &Device::Cpu).unwrap();
        // The last token of a response is predicted, never read.
        let whole = batch(Reading::Whole);
        assert_eq!(
            (whole.tokens.dims(), whole.token_count),
            (&[2, 11][..], 11 + 8)
        );
        let chosen = batch(Reading::Chosen);
        assert_eq!(
            (chosen.tokens.dims(), chosen.token_count),
            (&[2, 8][..], 4 + 8)
        );
        // The prompt of a response that is all unary is still read.
        let single = example(3, 2, 0);
        let batch = Batch::new(&[&single], 2, Reading::Chosen, &Device::Cpu).unwrap();
        assert_eq!(batch.tokens.dims(), [1, 3]);
    }
}
