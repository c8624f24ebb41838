//! `msl`: tune and evaluate a language model as a recommender with the masked softmax loss.

use std::process::ExitCode;

use clap::Parser;
use msl::{arguments::Arguments, commands};

/// A training step makes and drops the same large tensors again and again. The system's allocator gives such memory
/// back each time, and every page of it is then faulted in anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match commands::run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
