//! Tokenizes rows: prompts with the responses that a model should give.

use anyhow::{Result, ensure};
use candle_trie::TokenTrie;

use crate::{
    console::progress::Progress,
    data::{
        catalogue::{Catalogue, Interaction},
        prompt::Prompt,
        responses::Responses,
        tokenizer::TextTokenizer,
    },
};

/// One row in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The tokens of the prompt.
    pub prompt: Vec<u32>,
    /// The tokens of the response, with the end token.
    pub response: Vec<u32>,
    /// Number of tokens of the response up to the last at a branching node. The rest follows from the trie.
    pub chosen: usize,
    /// The number of the item that the response names.
    pub target: u64,
}

impl Example {
    /// Returns the number of tokens of the prompt and the response.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.response.len()
    }
}

/// Tokenizes rows.
pub fn examples(
    rows: &[Interaction],
    catalogue: &Catalogue,
    prompt: &Prompt,
    tokenizer: &TextTokenizer,
    responses: &Responses,
) -> Result<Vec<Example>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut progress = Progress::new("tokenizing", rows.len());
    let example = |row: &Interaction| {
        progress.advance(1);
        let text = prompt.text(row.history.iter().map(|&item| catalogue.name(item)));
        let response = responses.path(row.target)?;
        let prompt = tokenizer.encode_prompt(&text)?;
        // The first token of the response is predicted at the last one of the prompt.
        ensure!(!prompt.is_empty(), "a row's prompt has no token: {text:?}");
        Ok(Example {
            prompt,
            chosen: chosen(responses.trie(), &response),
            response,
            target: row.target,
        })
    };
    let examples = rows.iter().map(example).collect::<Result<_>>();
    progress.finish();
    examples
}

/// Tokenizes every title of a catalogue behind a prompt without a history: what a model is pretrained on.
pub fn titles(
    catalogue: &Catalogue,
    prompt: &Prompt,
    tokenizer: &TextTokenizer,
    responses: &Responses,
) -> Result<Vec<Example>> {
    let row = |target| Interaction {
        user: String::new(),
        history: Vec::new(),
        target,
    };
    let rows: Vec<Interaction> = (0..catalogue.items().len() as u64).map(row).collect();
    examples(&rows, catalogue, prompt, tokenizer, responses)
}

/// Counts the tokens of a response up to the last at a branching node of the trie.
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

/// Warns of rows that are longer than the `positions` tokens that a model was made for.
pub fn warn_of_long_rows(lengths: impl Iterator<Item = usize>, positions: usize) {
    let (mut all, mut long, mut longest) = (0, 0, 0);
    for tokens in lengths {
        all += 1;
        long += usize::from(tokens > positions);
        longest = longest.max(tokens);
    }
    if long > 0 {
        eprintln!(
            "warning: {long} of {all} rows are longer than the {positions} tokens that the model was made for \
             (max_position_embeddings of its configuration), up to {longest}: its answers to them may be meaningless. \
             Shorten the histories, take --prompt titles, or take a model of a longer context"
        );
    }
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
