//! Ctrl-C: the step in hand is finished and saved.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

/// What a shell expects of a program that was ended by Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Whether somebody wants the program to end.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens for Ctrl-C and for a request to terminate. The second one ends the program at once.
    pub fn listen() -> Result<Self> {
        let heard = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order the first signal finds nothing heard yet, and the second one something.
            flag::register_conditional_shutdown(signal, INTERRUPTED, heard.clone())
                .and_then(|_| flag::register(signal, heard.clone()))
                .context("cannot listen for Ctrl-C")?;
        }
        Ok(Self(heard))
    }

    /// Whether it was heard.
    pub fn heard(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
