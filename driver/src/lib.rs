//! The parts of `msl`: data, prompts, a small Llama-style model, training and evaluation with the losses of
//! `candle-trie`.

// Prints with `console::print`, which is no panic where standard output is closed or full.
#![deny(clippy::print_stdout)]

/// As that of the standard library, which ends the program where standard error is closed.
macro_rules! eprintln {
    ($($argument:tt)*) => {
        $crate::console::note(format_args!($($argument)*))
    };
}

pub mod adapter;
pub mod arguments;
pub mod baselines;
pub mod batch;
pub mod catalogue;
pub mod catalogue_shape;
pub mod checkpoint;
pub mod commands;
pub mod comparison;
pub mod console;
pub mod data_files;
pub mod data_report;
pub mod dataset;
pub mod decoding;
pub mod device;
pub mod evaluate;
pub mod events;
pub mod gradients;
pub mod input;
pub mod interrupt;
pub mod json;
pub mod layout;
pub mod lock;
pub mod made_with;
pub mod metrics;
pub mod model;
pub mod optimizer;
pub mod output;
pub mod paper_format;
pub mod precision;
pub mod pretrained;
pub mod progress;
pub mod prompt;
pub mod random;
pub mod ranking;
pub mod ranks;
pub mod recbole_format;
pub mod report;
pub mod responses;
pub mod run_folder;
pub mod schedule;
pub mod search;
pub mod settings;
pub mod synthetic;
pub mod targets;
pub mod text_file;
pub mod text_table;
pub mod tokenizer;
pub mod train;
pub mod training_run;
pub mod workers;
