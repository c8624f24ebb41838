//! The threads that the losses run on.

use std::process;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// The threads, and the process that they belong to. rayon's own pool would not do: a process that was forked has none of its
/// threads, and would wait for them for ever.
static THREADS: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);

/// Runs `body` on the threads of this process, without the GIL.
///
/// `body` must take no lock: a thread that waits for parts of its work runs other work meanwhile, which may want the same lock.
pub fn on_threads<R: Send>(py: Python, body: impl FnOnce() -> R + Send) -> R {
    py.detach(|| install(body))
}

/// Runs `body` with what a mutex guards on the threads of this process, without the GIL.
pub fn locked_on_threads<T: Send, R: Send>(
    py: Python,
    mutex: &Mutex<T>,
    body: impl FnOnce(&mut T) -> R + Send,
) -> R {
    py.detach(|| {
        // The lock is held by the calling thread, which runs no other work while it waits.
        let mut guarded = mutex.lock().unwrap_or_else(PoisonError::into_inner);
        let guarded = &mut *guarded;
        install(|| body(guarded))
    })
}

fn install<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    match threads() {
        Some(threads) => threads.install(body),
        None => body(),
    }
}

/// Returns the threads of this process; `None` where they cannot be started.
fn threads() -> Option<Arc<ThreadPool>> {
    let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    let process = process::id();
    match &*threads {
        Some((of, threads)) if *of == process => Some(threads.clone()),
        _ => {
            let new = Arc::new(ThreadPoolBuilder::new().build().ok()?);
            // Those of the process that this one was forked from do not exist here, and cannot be told to end.
            std::mem::forget(threads.replace((process, new.clone())));
            Some(new)
        }
    }
}
