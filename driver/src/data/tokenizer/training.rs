//! Trains byte-pair tokenizers on a catalogue, and defines the options that choose a tokenizer.

use std::{ops::Range, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokenizers::{
    AddedToken, Tokenizer,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
        wordlevel::WordLevel,
    },
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{
    END_TOKEN, LARGEST_ID, TextTokenizer,
    byte_level::{LLAMA_3_DIGITS, byte_level, split_words},
};
use crate::data::{
    catalogue::{Catalogue, Identifier, quoted},
    prompt::{Prompt, PromptStyle},
    semantic_ids::SemanticIds,
};

/// The longest piece of a text that merges are learned in, in characters. What a merge costs rises with the square of
/// the longest word.
const LONGEST_PIECE: usize = 4_096;

/// The token that a tokenizer without text reads any text as that is none of its tokens.
const UNKNOWN_TOKEN: &str = "<unk>";

/// Options of the tokenizer.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerArguments {
    /// A tokenizer.json [default: byte-pair merges trained on the titles and the prompt, or the codes alone where prompts
    /// hold nothing else]. Codes that are no tokens of it are added
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,

    /// The token that ends a response [default: the first of the usual ones that the tokenizer has]
    #[arg(long, value_name = "TOKEN")]
    pub end_token: Option<String>,

    /// The largest vocabulary of a tokenizer that is trained on the titles
    #[arg(
        long,
        default_value_t = 4_096,
        value_name = "TOKENS",
        conflicts_with = "tokenizer"
    )]
    pub vocabulary: usize,

    /// Whether prompts begin with the tokens that the tokenizer puts before a text. In runs of earlier versions they do
    /// not.
    #[arg(skip)]
    #[serde(default)]
    pub begins: bool,
}

impl TokenizerArguments {
    /// Opens the tokenizer that is named, or trains one on the catalogue.
    pub fn open(&self, catalogue: &Catalogue, prompt: &Prompt) -> Result<TextTokenizer> {
        let codes = catalogue.semantic_ids().map(SemanticIds::codes);
        let tokenizer = match &self.tokenizer {
            Some(file) => TextTokenizer::load(file, self.end_token.as_deref())?,
            None => {
                ensure!(
                    self.end_token.is_none(),
                    "--end-token names a token of --tokenizer or --model: a tokenizer that is trained here has its own"
                );
                match prompt.style() {
                    PromptStyle::Codes => TextTokenizer::without_text()?,
                    _ => TextTokenizer::train_on(catalogue, prompt, self.vocabulary)
                        .context("cannot train a tokenizer")?,
                }
            }
        };
        match codes {
            Some(codes) => Ok(tokenizer.with_codes(codes)?.0),
            None => Ok(tokenizer),
        }
    }
}

impl TextTokenizer {
    /// Trains a tokenizer on the titles as prompts and responses quote them, and on the words around them.
    pub fn train_on(catalogue: &Catalogue, prompt: &Prompt, vocabulary: usize) -> Result<Self> {
        let texts: Vec<String> = match catalogue.identifier() {
            // Codes are tokens of their own, of which no merges are to be learned.
            Identifier::Codes => vec![prompt.text([String::new(), String::new()])],
            Identifier::Title | Identifier::CodesTitle => (catalogue.items().iter())
                .map(|item| quoted(&item.title))
                .flat_map(|title| [prompt.text([title.clone(), title.clone()]), title])
                .collect(),
        };
        Self::train(texts.iter().map(String::as_str), vocabulary)
    }

    /// Builds a tokenizer that has an end token and reads no text. Codes are its tokens once they are added.
    fn without_text() -> Result<Self> {
        let tokens = [END_TOKEN, UNKNOWN_TOKEN];
        let model = WordLevel::builder()
            .vocab(tokens.map(str::to_owned).into_iter().zip(0..).collect())
            .unk_token(UNKNOWN_TOKEN.into())
            .build()
            .map_err(anyhow::Error::from_boxed)?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer
            .add_special_tokens(tokens.map(|token| AddedToken::from(token, true)))
            .map_err(anyhow::Error::from_boxed)?;
        Self::new(tokenizer, None, None)
    }

    /// Adds each code as a token of its own, unless all of them are tokens already. Also returns the tokens from the first
    /// that its model does not have to the last, if a code is among them.
    pub fn with_codes(mut self, codes: &[String]) -> Result<(Self, Range<usize>)> {
        let before = self.vocabulary();
        self.add_codes(codes, before)?;
        let own = before.min(self.rows.unwrap_or(before));
        let is_new = |code: &String| self.token(code).is_some_and(|token| token as usize >= own);
        let new = match codes.iter().any(is_new) {
            true => own..self.vocabulary(),
            false => own..own,
        };
        if !new.is_empty() {
            self.rows = self.rows.map(|_| new.end);
        }
        Ok((self, new))
    }

    /// Adds codes to a tokenizer that needs `before` rows.
    fn add_codes(&mut self, codes: &[String], before: usize) -> Result<()> {
        let known: Vec<&String> = (codes.iter())
            .filter(|code| self.token(code).is_some())
            .collect();
        if let [first, ..] = known[..] {
            ensure!(
                known.len() == codes.len(),
                "{} of the {} codes are tokens of the tokenizer already, such as {first:?}, and the others are not: give \
                 the codes names that no token has, such as <a_12>",
                known.len(),
                codes.len()
            );
            return Ok(());
        }
        ensure!(
            before.saturating_add(codes.len()) <= LARGEST_ID as usize + 1,
            "the tokenizer has {before} tokens and the items {} codes: expected at most {} tokens in all",
            codes.len(),
            LARGEST_ID as usize + 1
        );
        let token = |code: &String| AddedToken::from(code, false).normalized(false);
        self.tokenizer
            .add_tokens(codes.iter().map(token))
            .map_err(anyhow::Error::from_boxed)?;
        // tokenizers counts on from the number of tokens, also where ids were left out.
        for (code, expected) in codes.iter().zip(before..) {
            let token =
                (self.token(code)).with_context(|| format!("the code {code:?} became no token"))?;
            ensure!(
                token as usize == expected,
                "the code {code:?} became the token {token}, expected {expected}: the ids of the tokenizer's tokens have \
                 gaps, behind which none can be added"
            );
        }
        Ok(())
    }

    /// Trains byte-pair merges on texts, to at most `vocabulary` tokens.
    pub fn train<'a>(
        texts: impl Iterator<Item = &'a str> + Clone + Send,
        vocabulary: usize,
    ) -> Result<Self> {
        let smallest = ByteLevel::alphabet().len() + 1;
        ensure!(
            vocabulary >= smallest,
            "--vocabulary is {vocabulary}, expected at least {smallest}: a token for each byte and the one that ends a \
             response"
        );
        // Each merge joins two tokens of a text: there cannot be more than the texts have bytes.
        let bytes: usize = texts.clone().map(str::len).sum();
        let largest = smallest + bytes;
        // As Llama 3 splits: it keeps an opening quote with the first letters of a title. Where the quote stands alone,
        // every title begins with the same token, the root of the trie has no fan-out, and the published temperature
        // strategy is not defined there.
        let mut tokenizer = byte_level(BPE::default(), None, split_words(LLAMA_3_DIGITS)?)?;
        let trainer = BpeTrainer::builder()
            .vocab_size(vocabulary.min(largest))
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END_TOKEN, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut trainer = TrainerWrapper::from(trainer);
        tokenizer
            .train(&mut trainer, texts.flat_map(pieces))
            .map_err(anyhow::Error::from_boxed)?;
        Self::new(tokenizer, None, None)
    }
}

/// Cuts a text into pieces of a bounded length.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (end, _) = (rest.char_indices().nth(LONGEST_PIECE)).unwrap_or((rest.len(), ' '));
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::tests::TITLES;

    #[test]
    fn training_is_repeatable_and_loses_nothing() {
        let first = TextTokenizer::train(TITLES.into_iter(), 300).unwrap();
        let second = TextTokenizer::train(TITLES.into_iter(), 300).unwrap();
        for text in ["\"The Sea\"", "\"Ünïcode – 本\"\n"] {
            let tokens = first.encode(text).unwrap();
            assert_eq!(tokens, second.encode(text).unwrap());
            assert_eq!(first.tokenizer.decode(&tokens, false).unwrap(), text);
        }
        assert!(first.vocabulary() <= 300);
    }

    #[test]
    fn titles_begin_with_different_tokens() {
        let tokenizer = TextTokenizer::train(TITLES.into_iter(), 400).unwrap();
        let first = |text| tokenizer.encode(text).unwrap()[0];
        assert_ne!(first("\"The Sea\""), first("\"A Sea of Glass\""));
    }

    #[test]
    fn a_long_word_and_a_large_vocabulary_are_bounded_by_what_the_texts_hold() {
        let long = "x".repeat(200_000);
        let begun = std::time::Instant::now();
        let tokenizer = TextTokenizer::train([long.as_str()].into_iter(), usize::MAX).unwrap();
        assert!(begun.elapsed().as_secs() < 10);
        assert!(tokenizer.vocabulary() < 1_000);
        let text = "é".repeat(LONGEST_PIECE + 1);
        assert_eq!(pieces(&text).collect::<String>(), text);
        assert_eq!(pieces(&text).count(), 2);
    }
}
