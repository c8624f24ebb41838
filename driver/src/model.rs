//! Llama-style language models whose every trained parameter gets its gradient.

pub mod adapter;
mod attention;
mod cache;
mod config;
pub mod device;
mod forward;
mod head;
mod layer;
mod linear;
mod llama;
mod lora;
mod norm;
mod parameters;
pub mod precision;
pub mod pretrained;
mod sizes;

pub use cache::{Cache, Sequence};
pub use config::{Architecture, EndTokens, LlamaConfig, RopeParameters};
pub use head::LmHead;
pub use llama::{AddedRows, EMBEDDING, HEAD, Llama, NamedText, trained_rows_of};
pub use lora::{LoraSettings, TARGETS, is_end_of};
pub use parameters::{NamedTensors, Parameters, Weights};
pub use sizes::ModelSettings;
