//! `msl`: tune and evaluate a language model as a recommender with the masked softmax loss.

use std::process::ExitCode;

use clap::Parser;
use msl::{arguments::Arguments, commands};

fn main() -> ExitCode {
    match commands::run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
