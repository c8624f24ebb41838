//! Locks folders, so that only one process at a time writes to a run. A lock ends with its process.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use same_file::Handle;

use crate::run::layout::LOCK_FILE;

/// The lock of a folder, for as long as the value lives.
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Locks a folder; `None` where another process has it locked.
    pub fn take(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(LOCK_FILE);
        let cannot = || format!("cannot lock {}", path.display());
        // What is there by this name may not be followed out of the folder.
        let there = fs::symlink_metadata(&path).ok();
        ensure!(
            there.is_none_or(|there| there.is_file()),
            "{} is not a regular file",
            path.display()
        );
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => eprintln!(
                "warning: {}: {error}; see to it that no other process writes to this folder",
                cannot()
            ),
        }
        let lock = Self { file, path };
        // Between the two steps another process may have put another folder there.
        Ok(lock.is_in(folder)?.then_some(lock))
    }

    /// Tells whether a folder is still the one that was locked: neither moved nor deleted nor replaced.
    pub fn is_in(&self, folder: &Path) -> Result<bool> {
        let own = (self.file.try_clone().and_then(Handle::from_file))
            .with_context(|| format!("cannot identify {}", self.path.display()))?;
        let path = folder.join(LOCK_FILE);
        let is_file = fs::symlink_metadata(&path).is_ok_and(|there| there.is_file());
        Ok(is_file && Handle::from_path(path).is_ok_and(|found| found == own))
    }

    /// Gives the lock up, and removes its file from where its folder is now.
    pub fn discard(self, folder: &Path) -> Result<()> {
        let path = folder.join(LOCK_FILE);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_locked_once_and_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let (run, moved) = (folder.path().join("run"), folder.path().join("moved"));
        fs::create_dir(&run).unwrap();
        let lock = Lock::take(&run).unwrap().unwrap();
        assert!(Lock::take(&run).unwrap().is_none());
        assert!(lock.is_in(&run).unwrap());
        fs::rename(&run, &moved).unwrap();
        assert!(lock.is_in(&moved).unwrap() && !lock.is_in(&run).unwrap());
        // Another folder of the same name is not the one that was locked.
        fs::create_dir(&run).unwrap();
        let other = Lock::take(&run).unwrap().unwrap();
        assert!(!lock.is_in(&run).unwrap() && other.is_in(&run).unwrap());
        drop(lock);
        assert!(Lock::take(&moved).unwrap().is_some());
    }
}
