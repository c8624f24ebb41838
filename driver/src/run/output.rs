//! What commands write: whole or not there, and over nothing that is not theirs.

mod apart;
mod file;
mod folder;

use std::path::Path;

pub use apart::{check_apart, is_place};
pub use file::{OutputFile, begin_beside};
pub use folder::{OutputFolder, PartialFolder, remove_abandoned};

/// The folder that something is in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
