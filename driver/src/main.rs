//! `msl`: tune and evaluate a language model as a recommender with the masked softmax loss.

use std::{io::ErrorKind, process::ExitCode};

use clap::Parser;
use msl::{
    commands::{self, arguments::Arguments},
    console::{self, OutputClosed, be_quiet, note, shown},
    exchange,
    train::interrupt::Interrupted,
};

/// A training step makes and drops the same large tensors again and again. The system's allocator gives such memory
/// back each time, and every page of it is then faulted in anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    set_candle_threads();
    match Arguments::try_parse() {
        Ok(arguments) => run(&arguments),
        Err(usage) => match usage.print() {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => ExitCode::from(usage.exit_code() as u8),
        },
    }
}

/// Runs a command together with the other processes that a launcher has started, if there are any.
fn run(arguments: &Arguments) -> ExitCode {
    let exchange = match exchange::open() {
        Ok(exchange) => exchange,
        Err(error) => return failed(&error, None),
    };
    let several = exchange.size() > 1;
    if exchange.rank() > 0 {
        be_quiet();
    }
    let Err(error) = commands::run(arguments, &*exchange) else {
        return ExitCode::SUCCESS;
    };
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
        // All ranks end after the same step, and one says so, which it could not if the launcher ended it because of another.
        note(format_args!("error: {interrupted}"));
        let _ = exchange.barrier();
        return ExitCode::from(interrupted.status());
    }
    let code = failed(&error, several.then(|| exchange.rank()));
    // The others may wait for this one.
    exchange.abort(1);
    code
}

/// Says why a command failed.
fn failed(error: &anyhow::Error, rank: Option<usize>) -> ExitCode {
    let text = format!("{error:#}");
    let lines: Vec<String> = text.lines().map(shown).collect();
    let who = rank.map_or(String::new(), |rank| format!(" of rank {rank}"));
    console::error(format_args!("error{who}: {}", lines.join("\n")));
    ExitCode::FAILURE
}

/// Keeps candle's element-wise operations to one thread. Training gives whole pieces of a batch to threads. candle would
/// also split every long operation among threads that spin until the slowest is done, which is ten times slower on a busy
/// machine. The threads of matrix products are those of rayon: where nothing says how many, candle would read
/// /proc/cpuinfo for every single product, which takes longer than a small one.
fn set_candle_threads() {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    for (name, count) in [("CANDLE_NUM_THREADS", 1), ("RAYON_NUM_THREADS", threads)] {
        if std::env::var_os(name).is_none() {
            // SAFETY: this is the first thing that the only thread does, so no other reads the environment meanwhile.
            unsafe { std::env::set_var(name, count.to_string()) };
        }
    }
}
