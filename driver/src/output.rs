//! Output folders that are whole or not there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

const PARTIAL: &str = ".partial-";
const REPLACED: &str = ".replaced-";

/// A folder that is written beside its place and put there when it is complete. Dropped before that, it leaves nothing
/// behind.
pub struct OutputFolder {
    partial: TempDir,
    target: PathBuf,
}

impl OutputFolder {
    /// Begins a folder. One that is there already is an error, unless it may be replaced.
    pub fn create(target: &Path, overwrite: bool) -> Result<Self> {
        Self::check(target, overwrite)?;
        let parent = parent(target);
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create the folder {}", parent.display()))?;
        Ok(Self {
            partial: beside(target, PARTIAL)?,
            target: target.to_owned(),
        })
    }

    /// Whether such a folder could begin.
    pub fn check(target: &Path, overwrite: bool) -> Result<()> {
        if target.exists() && !overwrite {
            bail!(
                "{} is there already: name another --output, or give --overwrite",
                target.display()
            );
        }
        Ok(())
    }

    /// Where to write now.
    pub fn path(&self) -> &Path {
        self.partial.path()
    }

    /// Whether a folder of this name was left over by a process that was killed.
    pub fn is_left_over(name: &str) -> bool {
        name.contains(PARTIAL) || name.contains(REPLACED)
    }

    /// Puts the complete folder in its place. It has reached the disk before it is there, and what it replaces stays
    /// there until then; a process that is killed between the two leaves both beside the place.
    pub fn finish(self) -> Result<()> {
        let cannot = || format!("cannot move the finished run to {}", self.target.display());
        publish(self.partial.path()).with_context(cannot)?;
        let old = beside(&self.target, REPLACED)?;
        let kept = old.path().join("run");
        let replaces = self.target.exists();
        if replaces {
            fs::rename(&self.target, &kept).with_context(cannot)?;
        }
        if let Err(error) = fs::rename(self.partial.path(), &self.target) {
            if replaces && fs::rename(&kept, &self.target).is_err() {
                let place = old.keep().join("run");
                return Err(error).with_context(|| {
                    format!(
                        "{}, and what was there is now {}",
                        cannot(),
                        place.display()
                    )
                });
            }
            return Err(error).with_context(cannot);
        }
        // It is no longer where it would be deleted.
        let _ = self.partial.keep();
        sync(parent(&self.target)).with_context(cannot)
    }
}

/// Makes everything in a folder readable, and waits until it has reached the disk.
fn publish(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            publish(&entry?.path())?;
        }
    }
    readable_by_all(path)?;
    sync(path)
}

/// Waits until a file, or the names in a folder, have reached the disk.
fn sync(path: &Path) -> io::Result<()> {
    if cfg!(windows) && path.is_dir() {
        return Ok(());
    }
    fs::File::open(path)?.sync_all()
}

/// A new folder of a like name beside a place.
fn beside(target: &Path, mark: &str) -> Result<TempDir> {
    let name = target
        .file_name()
        .with_context(|| format!("{} is no folder name", target.display()))?;
    let parent = parent(target);
    tempfile::Builder::new()
        .prefix(&format!("{}{mark}", name.to_string_lossy()))
        .tempdir_in(parent)
        .with_context(|| format!("cannot create a folder in {}", parent.display()))
}

fn parent(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A temporary folder is its owner's alone, and so are files that came to be beside their place; a finished run is like
/// any other folder.
fn readable_by_all(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_run_appears_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("runs/one");
        let output = OutputFolder::create(&target, false).unwrap();
        fs::write(output.path().join("file"), "new").unwrap();
        assert!(!target.exists());
        output.finish().unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "new");
        assert_eq!(names(&folder.path().join("runs")), ["one"]);
    }

    #[test]
    fn nothing_is_replaced_unasked_or_by_half() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("one");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("file"), "old").unwrap();
        assert!(OutputFolder::create(&target, false).is_err());
        drop(OutputFolder::create(&target, true).unwrap());
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "old");
        OutputFolder::create(&target, true)
            .unwrap()
            .finish()
            .unwrap();
        assert!(names(&target).is_empty());
        assert_eq!(names(folder.path()), ["one"]);
    }

    #[test]
    #[cfg(unix)]
    fn a_run_that_cannot_be_finished_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("one");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("file"), "old").unwrap();
        let output = OutputFolder::create(&target, true).unwrap();
        // What is not there cannot reach the disk.
        std::os::unix::fs::symlink("nowhere", output.path().join("link")).unwrap();
        assert!(output.finish().is_err());
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "old");
        assert_eq!(names(folder.path()), ["one"]);
    }
}
