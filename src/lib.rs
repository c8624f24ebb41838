//! Trie-masked softmax losses for [candle](https://docs.rs/candle-core): tune a language model as a
//! recommender with the **Masked Softmax Loss** (MSL) and its **Adaptive Temperature Strategy** (ATS)
//! of [arXiv 2504.04178](https://arxiv.org/abs/2504.04178).
//!
//! A model that recommends by writing an item's title has, at every token, only a few tokens that
//! continue some item of the catalogue. MSL restricts the softmax to those tokens:
//!
//! * [`TokenTrie`] has the catalogue's token paths, and [`TokenSets`] the tokens that may follow each of its nodes.
//! * [`Rows`] has the labelled positions of a batch, each with its node of the trie and its target. A row is *unary* if its
//!   token set has one token, and then has loss 0. It is *branching* if the set has more.
//! * [`MaskedSoftmaxLoss`] is the loss. It is differentiable, and takes logits, or hidden states and a head without
//!   materialising the logits (see [`Scores`]).
//! * [`Temperature`] is fixed or adaptive. An adaptive one is computed from [`Statistics`].
//! * [`Bear`] weights rows by whether beam search would keep their targets.
//! * [`BeamSearch`] and [`ExactSearch`] find the most probable items.
//! * [`reference`](mod@reference) is the definition in f64, which other implementations are checked against.
//!
//! # Training
//!
//! Compute `loss`, call `backward()` on it, and step the optimizer, as with any loss of candle:
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
//!
//! The model must be differentiable too. `candle_nn::RmsNorm`, `softmax_last_dim` and `rope` have no backward pass, and neither have
//! the models of candle-transformers, which use them: `backward()` then succeeds and leaves most variables without a gradient.
//! The example [`train`] trains a small Llama block of differentiable operations, and shows how to count the gradients.
//!
//! # Gradient accumulation and several devices
//!
//! An adaptive temperature takes one step for each step of the optimizer, from the statistics of the whole batch. Compute each
//! micro-batch with [`forward_at`](MaskedSoftmaxLoss::forward_at), which takes no step, divide by the rows of all by
//! [`Reduction::MeanOver`], [`merge`](Statistics::merge) the statistics, and call [`Temperature::step`] once. The example
//! [`accumulate`] shows that this gives the gradient of one batch. Devices and processes do the same with their parts of a batch:
//! gradients are summed between them, and statistics are gathered and merged, so that all take the same step. [`data_parallel`] does
//! that by hand.
//!
//! # Decoding
//!
//! [`BeamSearch`] searches for many users at once. It never holds the model: each step takes the logits (or hidden states) of its
//! active beams, and says which tokens the model must read next. [`exact_top_k`] proves which items are the most probable. The example
//! [`decode`] has both, and excludes items that a user has had.
//!
//! # Tensors that are not candle's
//!
//! The module [`host`] has the same losses over slices of host memory. The feature `cust` has them over buffers of CUDA devices. For
//! PyTorch there is a Python package in the repository, which the feature `raw-cuda` is for.
//!
//! # Custom masks
//!
//! Masks need not come from a trie. [`TokenSets::from_raw`] takes any sets of tokens and [`Rows::from_raw`] says which row has which:
//! grammars, candidates of a user, slates. [`TokenSets::whole_vocabulary`] gives the plain language-model loss. The example
//! [`custom_mask`] compares such a loss with candle's own operations.
//!
//! # Saving and loading
//!
//! [`TokenTrie::save`] writes a trie to one safetensors file, and [`TokenTrie::load`] checks it before it is used.
//! [`TokenTrie::open`] maps the file instead, so that a catalogue of any size is open at once. An adaptive temperature is part of a checkpoint: [`Temperature::state`] can be serialised, and [`Temperature::restore`] resumes
//! bit-identically.
//!
//! # Checking a kernel of your own
//!
//! [`reference`](mod@reference) computes loss, gradient and statistics in f64 in the plainest code. The example [`check_a_kernel`]
//! compares an implementation with it in f64, f32, f16 and bf16, says which tolerance holds for each and why, and derives the
//! reference of hidden states and a head from that of logits.
//!
//! # Features
//!
//! | Feature | What it adds | What it needs |
//! |---|---|---|
//! | none | everything on the CPU | Rust 1.94 |
//! | `x86-v4` (default) | AVX-512 in gemm, and so in candle's own matmuls, whose last bits change | an x86-64 CPU that has it, else nothing changes |
//! | `cuda` | the same losses and beam search for CUDA tensors of candle (f32, f16, bf16) | an NVIDIA GPU of compute capability 8.0 or newer; to build, `nvcc` in `PATH` |
//! | `cust` | the losses over buffers and streams of the crate [cust](https://docs.rs/cust), in the module `cust` | the same; candle's CUDA is not used |
//! | `raw-cuda` | what the Python package needs for CUDA tensors of PyTorch: no public item | the same; the driver is opened at run time |
//!
//! `CANDLE_TRIE_CUDA_ARCHS` chooses the architectures that kernels are compiled for, for example `90`, `90a` or `80,90`. By default
//! these are 80, 86, 89, 90, 100 and 120, as far as nvcc knows them.
//!
//! [`train`]: https://docs.rs/crate/candle-trie/latest/source/examples/train.rs
//! [`accumulate`]: https://docs.rs/crate/candle-trie/latest/source/examples/accumulate.rs
//! [`data_parallel`]: https://docs.rs/crate/candle-trie/latest/source/examples/data_parallel.rs
//! [`decode`]: https://docs.rs/crate/candle-trie/latest/source/examples/decode.rs
//! [`custom_mask`]: https://docs.rs/crate/candle-trie/latest/source/examples/custom_mask.rs
//! [`check_a_kernel`]: https://docs.rs/crate/candle-trie/latest/source/examples/check_a_kernel.rs
#![deny(missing_docs)]

mod array;
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
pub use loss::host;
#[doc(hidden)]
pub use loss::raw;
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
