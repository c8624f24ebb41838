//! Trie-masked softmax losses for candle.
#![deny(missing_docs)]

mod error;
mod sets;
mod trie;

pub use error::{Error, Result};
pub use sets::{TokenSet, TokenSets};
pub use trie::TokenTrie;
