//! Llama-style language models whose every trained parameter gets its gradient.

pub mod adapter;
mod attention;
mod cache;
mod causal_attention;
mod composed;
mod config;
pub mod device;
mod elements;
mod feed_forward;
mod form;
mod frozen_feed_forward;
mod layer;
mod linear;
mod llama;
mod lora;
mod matrix;
mod norm;
mod parameters;
mod pass;
pub mod precision;
pub mod pretrained;
mod residual;
mod rotary;
mod sizes;

pub use cache::{Cache, Sequence};
pub use config::{Architecture, EndTokens, LlamaConfig, RopeParameters};
pub use llama::{EMBEDDING, Llama};
pub use lora::{LoraSettings, TARGETS, is_end_of};
pub use parameters::{NamedTensors, Parameters, Weights};
pub use sizes::ModelSettings;
