//! Trie-masked softmax losses for candle.
#![deny(missing_docs)]

mod backend;
mod error;
mod loss;
mod rows;
mod sets;
mod statistics;
mod temperature;
mod trie;

#[cfg(feature = "cuda")]
pub use backend::cuda;
pub use backend::launch;
pub use error::{Error, Result};
pub use loss::{Convention, LossOutput, MaskedSoftmaxLoss, Reduction, reference};
pub use rows::{Labels, Row, Rows};
pub use sets::{TokenSet, TokenSets};
pub use statistics::Statistics;
pub use temperature::{
    AdaptiveStrategy, AdaptiveTemperature, Scope, Temperature, TemperatureState,
};
pub use trie::TokenTrie;
