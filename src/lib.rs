//! Trie-masked softmax losses for [candle](https://docs.rs/candle-core): tune a language model as a
//! recommender with the **Masked Softmax Loss** (MSL) and its **Adaptive Temperature Strategy** (ATS)
//! of [arXiv 2504.04178](https://arxiv.org/abs/2504.04178).
//!
//! A model that recommends by writing an item's title has, at every token, only a few tokens that
//! continue some item of the catalogue. MSL restricts the softmax to those tokens:
//!
//! * [`TokenTrie`] has the catalogue's token paths, and [`TokenSets`] the tokens that may follow each of its nodes.
//! * [`Rows`] has the labelled positions of a batch, each with its node of the trie and its target.
//! * [`MaskedSoftmaxLoss`] is the loss. It is differentiable, and takes logits, or hidden states and a head without
//!   materialising the logits (see [`Scores`]).
//! * [`Temperature`] is fixed or adaptive. An adaptive one is computed from [`Statistics`].
//! * [`Bear`] weights rows by whether beam search would keep their targets.
//! * [`BeamSearch`] and [`ExactSearch`] find the most probable items.
//! * [`reference`](mod@reference) is the definition in f64, which other implementations are checked against.
//!
//! ```
//! use candle_core::{DType, Device, Tensor, Var};
//! use candle_trie::{AdaptiveStrategy, MaskedSoftmaxLoss, Rows, Scope, TokenTrie};
//!
//! // A catalogue of three titles. Token 9 ends each.
//! let trie = TokenTrie::new([(0, vec![1, 2, 9]), (1, vec![1, 3, 9]), (2, vec![4, 9])])?;
//! let strategy = AdaptiveStrategy { scope: Scope::Branching, ..Default::default() };
//! let mut loss = MaskedSoftmaxLoss::new(&trie, strategy)?;
//!
//! // One response behind a prompt of two tokens, as Hugging Face labels it.
//! let labels = Tensor::new(&[[-100i64, -100, 1, 3, 9]], &Device::Cpu)?;
//! let rows = Rows::from_unshifted(&trie, &labels)?;
//! let hidden = Var::randn(0f32, 1.0, (1, 5, 8), &Device::Cpu)?; // [B, T, H], from a model
//! let head = Tensor::randn(0f32, 1.0, (10, 8), &Device::Cpu)?; // [V, H]
//!
//! let output = loss.forward((&hidden, &head), &rows)?;
//! let gradients = output.loss.backward()?;
//! assert_eq!(gradients.get(&hidden).unwrap().dims(), [1, 5, 8]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]

mod backend;
mod bear;
mod decode;
mod error;
mod loss;
mod rows;
mod sets;
mod statistics;
mod temperature;
mod trie;

#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use backend::cuda;
#[doc(hidden)]
pub use backend::launch;
pub use bear::Bear;
pub use decode::{
    BeamSearch, BeamStep, ExactSearch, Expansion, Normalisation, SearchResult, exact_top_k,
};
pub use error::{Error, Result};
#[cfg(feature = "cust")]
pub use loss::cust;
pub use loss::{
    Convention, FrozenHead, GradientTarget, Head, LossOutput, MaskedSoftmaxLoss, Reduction, Scores,
    reference,
};
pub use rows::{Labels, Row, Rows};
pub use sets::{TokenSet, TokenSets};
pub use statistics::Statistics;
pub use temperature::{
    AdaptiveStrategy, AdaptiveTemperature, Scope, Temperature, TemperatureState,
};
pub use trie::TokenTrie;

/// The README's examples, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
