//! Listens for Ctrl-C and other signals that end a program, so that the current step is finished and saved.

use std::{
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

/// A listener for signals that end the program.
pub struct Interrupt {
    heard: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Listens for Ctrl-C, for a request to terminate, for a terminal that is closed, and for SIGUSR1, which `mpirun` and SLURM
    /// pass on to all ranks and do not follow up with SIGKILL. The second of them ends the program at once.
    pub fn listen() -> Result<Self> {
        let (heard, by) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        for signal in signals() {
            // In this order the first signal finds the flag unset, and the second one finds it set.
            flag::register_conditional_shutdown(signal, status(signal), heard.clone())
                .and_then(|_| flag::register_usize(signal, by.clone(), signal as usize))
                .and_then(|_| flag::register(signal, heard.clone()))
                .context("cannot listen for Ctrl-C")?;
        }
        Ok(Self { heard, signal: by })
    }

    /// Returns the signal that has arrived.
    pub fn heard(&self) -> Option<i32> {
        let heard = self.heard.load(Ordering::SeqCst);
        heard.then(|| self.signal.load(Ordering::SeqCst) as i32)
    }
}

/// Returns the status that a shell expects of a program that a signal has ended.
fn status(signal: i32) -> i32 {
    128 + signal
}

#[cfg(unix)]
fn signals() -> Vec<i32> {
    use signal_hook::consts::{SIGHUP, SIGUSR1};
    // A run that was started with nohup continues when its terminal is closed.
    match is_ignored(SIGHUP) {
        true => vec![SIGINT, SIGTERM, SIGUSR1],
        false => vec![SIGINT, SIGTERM, SIGUSR1, SIGHUP],
    }
}

#[cfg(not(unix))]
fn signals() -> Vec<i32> {
    vec![SIGINT, SIGTERM]
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the present one to where the second pointer leads, which is
    // large enough for it; a value of zeros is one, too, if the call fails.
    let action = unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// The error of a command that was interrupted and has saved its work.
#[derive(Debug)]
pub struct Interrupted {
    /// The signal.
    pub signal: i32,
    /// A sentence on what was saved and how to continue.
    pub message: String,
}

impl Interrupted {
    /// Returns the status to exit with.
    pub fn status(&self) -> u8 {
        u8::try_from(status(self.signal)).unwrap_or(1)
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for Interrupted {}
