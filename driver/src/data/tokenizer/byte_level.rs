//! Builds byte-level byte-pair tokenizers, as GPT-2, Llama 3 and Qwen have them.

use anyhow::{Error, Result};
use tokenizers::{
    SplitDelimiterBehavior, Tokenizer, TokenizerBuilder,
    models::bpe::BPE,
    normalizers::NormalizerWrapper,
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

/// The expression of Llama 3's splitting, around that of the digits that stay together.
const WORDS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Llama 3 keeps up to three digits together.
pub const LLAMA_3_DIGITS: &str = r"\p{N}{1,3}";

/// Returns the steps that split a text into words as Llama 3 does, and these into bytes. `digits` is the expression of
/// the digits that stay together.
pub fn split_words(digits: &str) -> Result<Vec<PreTokenizerWrapper>> {
    let pattern = SplitPattern::Regex(WORDS.join(digits));
    let split =
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(Error::from_boxed)?;
    let bytes = ByteLevel::new(false, true, false);
    Ok(vec![split.into(), bytes.into()])
}

/// Builds a tokenizer of merges behind these steps.
pub fn byte_level(
    merges: BPE,
    normalizer: Option<NormalizerWrapper>,
    steps: Vec<PreTokenizerWrapper>,
) -> Result<Tokenizer> {
    let bytes = ByteLevel::new(false, true, false);
    let tokenizer = TokenizerBuilder::new()
        .with_model(merges)
        .with_normalizer(normalizer)
        .with_pre_tokenizer(Some(Sequence::new(steps)))
        .with_post_processor(Some(bytes))
        .with_decoder(Some(bytes))
        .build()
        .map_err(Error::from_boxed)?;
    Ok(tokenizer.into())
}
