//! The parts of `msl`: data, prompts, a small Llama-style model, training and evaluation with the losses of
//! `candle-trie`.

pub mod adapter;
pub mod arguments;
pub mod batch;
pub mod catalogue;
pub mod checkpoint;
pub mod commands;
pub mod dataset;
pub mod evaluate;
pub mod events;
pub mod gradients;
pub mod interrupt;
pub mod json;
pub mod metrics;
pub mod model;
pub mod optimizer;
pub mod output;
pub mod paper_format;
pub mod popularity;
pub mod pretrained;
pub mod progress;
pub mod prompt;
pub mod random;
pub mod ranking;
pub mod recbole_format;
pub mod report;
pub mod responses;
pub mod run_folder;
pub mod schedule;
pub mod settings;
pub mod synthetic;
pub mod tokenizer;
pub mod train;
pub mod training_run;
pub mod workers;
