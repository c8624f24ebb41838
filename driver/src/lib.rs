//! The parts of `msl`: data, prompts, a small Llama-style model, training and evaluation with the losses of
//! `candle-trie`.

pub mod catalogue;
pub mod model;
pub mod paper_format;
pub mod prompt;
pub mod random;
pub mod tokenizer;
