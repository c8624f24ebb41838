//! A Llama-style language model whose every parameter gets its gradient.

mod attention;
mod cache;
mod config;
mod elements;
mod feed_forward;
mod llama;
mod norm;
mod parameters;
mod rotary;
mod softmax;

pub use cache::Cache;
pub use config::LlamaConfig;
pub use llama::Llama;
pub use parameters::Parameters;
