//! Reads and writes files: UTF-8 text, JSON, binary files, and outputs that are written atomically.

pub mod binary;
pub mod json;
pub mod output;
pub mod text;

use std::{
    fs::{self, FileType},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Returns the paths of everything in a folder, in no order.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot read the folder {}", folder.display()))
}

/// Returns the folder that a path is in: the current one for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Returns the last part of a path as text; it is empty where there is none.
pub fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Names a kind of file in words.
pub fn named(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_dir() => "a folder",
        kind if kind.is_file() => "a file",
        _ => "a pipe, a socket or a device",
    }
}

/// Makes a temporary folder of files with these names and contents.
#[cfg(test)]
pub fn folder_of(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}
