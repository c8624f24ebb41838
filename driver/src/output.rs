//! Output folders that are whole or not there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

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
        let name = target
            .file_name()
            .with_context(|| format!("{} is no folder name", target.display()))?;
        let parent = parent(target);
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create the folder {}", parent.display()))?;
        let partial = tempfile::Builder::new()
            .prefix(&format!("{}.partial-", name.to_string_lossy()))
            .tempdir_in(parent)
            .with_context(|| format!("cannot create a folder in {}", parent.display()))?;
        Ok(Self {
            partial,
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

    /// Puts the complete folder in its place.
    pub fn finish(self) -> Result<()> {
        let cannot = || format!("cannot move the finished run to {}", self.target.display());
        let old = tempfile::Builder::new()
            .prefix(".replaced-")
            .tempdir_in(parent(&self.target))
            .with_context(cannot)?;
        let moved_aside = self.target.exists();
        if moved_aside {
            fs::rename(&self.target, old.path().join("run")).with_context(cannot)?;
        }
        let partial = self.partial.keep();
        readable_by_all(&partial).with_context(cannot)?;
        if let Err(error) = fs::rename(&partial, &self.target) {
            if moved_aside {
                // The old run is worth more than a second error message.
                let _ = fs::rename(old.path().join("run"), &self.target);
            }
            return Err(error).with_context(cannot);
        }
        Ok(())
    }
}

fn parent(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A temporary folder is its owner's alone; a finished run is like any other folder.
fn readable_by_all(folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
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
}
