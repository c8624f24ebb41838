//! The parts of `msl`: data, prompts, a small Llama-style model, training and evaluation with the losses of
//! `candle-trie`.

// Prints with `console::print`, which is no panic where standard output is closed or full.
#![deny(clippy::print_stdout)]

/// As that of the standard library, which ends the program where standard error is closed.
macro_rules! eprintln {
    ($($argument:tt)*) => {
        $crate::commands::console::note(format_args!($($argument)*))
    };
}

pub mod commands;
pub mod data;
pub mod evaluate;
pub mod model;
pub mod random;
pub mod report;
pub mod run;
pub mod train;
