//! `msl`: tune and evaluate a language model as a recommender with the masked softmax loss.

use std::{io::ErrorKind, process::ExitCode};

use clap::Parser;
use msl::{
    commands::{self, arguments::Arguments},
    console::{OutputClosed, note, shown},
    train::interrupt::Interrupted,
};

/// A training step makes and drops the same large tensors again and again. The system's allocator gives such memory
/// back each time, and every page of it is then faulted in anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keep_candle_from_spinning();
    match Arguments::try_parse() {
        Ok(arguments) => ended(commands::run(&arguments)),
        Err(usage) => match usage.print() {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => ExitCode::from(usage.exit_code() as u8),
        },
    }
}

/// Returns the status of a command that came to an end, and prints its error.
fn ended(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    let text = format!("{error:#}");
    let lines: Vec<String> = text.lines().map(shown).collect();
    note(format_args!("error: {}", lines.join("\n")));
    match error.downcast_ref::<Interrupted>() {
        Some(interrupted) => ExitCode::from(interrupted.status()),
        None => ExitCode::FAILURE,
    }
}

/// Keeps candle to one thread. Training gives whole pieces of a batch to threads. candle would also split every long
/// element-wise operation among threads that spin until the slowest is done, which is ten times slower on a busy
/// machine.
fn keep_candle_from_spinning() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: this is the first thing that the only thread does, so no other reads the environment meanwhile.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}
