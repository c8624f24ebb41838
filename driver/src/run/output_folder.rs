//! Writes output folders atomically: a run or a merged model is complete or it does not exist.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    io::{entries, file_name, named, output::PARTIAL, parent},
    run::{
        apart::check_apart,
        layout::{self, KEPT, Kind, LOCK_FILE, REPLACED, is_part_of_ours},
        lock::Lock,
    },
};

/// The age at which a folder without a lock counts as abandoned: its owner would have locked it at once.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// A folder that is written under another name and renamed when it is complete. If it is dropped before, nothing is
/// left.
pub struct PartialFolder {
    partial: TempDir,
    target: PathBuf,
}

impl PartialFolder {
    /// Creates a folder beside the target, and the folders above it.
    pub fn beside(target: PathBuf) -> Result<Self> {
        let parent = parent(&target);
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create the folder {}", parent.display()))?;
        Ok(Self {
            partial: beside(&target, PARTIAL)?,
            target,
        })
    }

    /// Returns the path to write to.
    pub fn path(&self) -> &Path {
        self.partial.path()
    }

    /// Renames the complete folder to its target, after it has reached the disk. What it replaces is renamed first; a
    /// process that is killed between the two renames leaves both folders beside the target.
    pub fn publish(self, overwrite: bool) -> Result<()> {
        let target = &self.target;
        let cannot = || format!("cannot move the finished folder to {}", target.display());
        publish(self.partial.path()).with_context(cannot)?;
        let replaced = match overwrite && target.exists() {
            true => {
                let replaced = beside(target, REPLACED)?;
                fs::rename(target, replaced.path().join(KEPT)).with_context(cannot)?;
                Some(replaced)
            }
            false => None,
        };
        // A folder that was created there in the meantime is not replaced, unless it is empty.
        if let Err(error) = fs::rename(self.partial.path(), target) {
            if let Some(replaced) = replaced
                && fs::rename(replaced.path().join(KEPT), target).is_err()
            {
                let kept = replaced.keep().join(KEPT);
                return Err(error).with_context(|| {
                    format!("{}, and what was there is now {}", cannot(), kept.display())
                });
            }
            ensure!(
                !target.exists(),
                "another process has created {} in the meantime: name another --output",
                target.display()
            );
            return Err(error).with_context(cannot);
        }
        // It is no longer where it would be deleted.
        let _ = self.partial.keep();
        sync(parent(target)).with_context(cannot)
    }
}

/// The folder of `--output`, while it is written.
pub struct OutputFolder {
    folder: PartialFolder,
    /// Whether what is there may be replaced.
    overwrite: bool,
    /// The lock of the run that is there, which nobody may train until it is replaced.
    old: Option<Lock>,
    /// Its own lock, which is taken before the folder has its final name.
    lock: Lock,
}

impl OutputFolder {
    /// Begins the folder. One that exists is an error, unless `overwrite` is given and it is a run that is not being trained,
    /// or a merged model, and holds none of the `inputs`.
    pub fn create(target: &Path, overwrite: bool, inputs: &[&Path]) -> Result<Self> {
        // Without a slash at the end, which would follow a link.
        let target: PathBuf = target.components().collect();
        let Ok(there) = fs::symlink_metadata(&target) else {
            return Self::begin(target, false, None);
        };
        ensure!(
            overwrite,
            "{} already exists: name another --output, or give --overwrite",
            target.display()
        );
        ensure!(
            there.is_dir(),
            "--output {} is {}, and --overwrite replaces folders of runs and merged models alone",
            target.display(),
            named(there.file_type())
        );
        check_apart("--output", &target, inputs)?;
        let old = match layout::replaceable(&target)? {
            Kind::Run => Some(locked(&target)?),
            Kind::MergedModel | Kind::Empty => None,
        };
        let real = fs::canonicalize(&target)
            .with_context(|| format!("cannot locate {}", target.display()))?;
        Self::begin(real, true, old)
    }

    fn begin(target: PathBuf, overwrite: bool, old: Option<Lock>) -> Result<Self> {
        let folder = PartialFolder::beside(target)?;
        let lock = locked(folder.path())?;
        remove_abandoned(&folder.target);
        Ok(Self {
            folder,
            overwrite,
            old,
            lock,
        })
    }

    /// Returns the path to write to.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Renames the complete folder to its target, and returns its lock. What is there is looked at again, as hours may
    /// have passed.
    pub fn finish(self) -> Result<Lock> {
        let target = &self.folder.target;
        if let Some(old) = &self.old {
            ensure!(
                old.is_in(target)?,
                "{} is no longer the run that was to be replaced: it was moved or deleted in the meantime",
                target.display()
            );
        }
        if self.overwrite && target.exists() {
            let there = layout::replaceable(target)?;
            ensure!(
                self.old.is_some() || there != Kind::Run,
                "another process has created the run {} in the meantime: name another --output",
                target.display()
            );
        }
        self.folder.publish(self.overwrite)?;
        Ok(self.lock)
    }
}

/// Locks a folder. One that another process has locked is an error.
fn locked(folder: &Path) -> Result<Lock> {
    Lock::take(folder)?.with_context(|| {
        format!(
            "{} is being trained by another process: wait for its end, or interrupt it",
            folder.display()
        )
    })
}

/// Removes what killed processes have left beside a target. What a living process writes is locked, and what msl did
/// not write is not touched.
pub fn remove_abandoned(target: &Path) {
    let name = file_name(target);
    for path in entries(parent(target)).unwrap_or_default() {
        let found = file_name(&path);
        let is = |mark: &str| found.starts_with(&format!("{name}{mark}"));
        let holder = match () {
            () if path.is_symlink() || !path.is_dir() => continue,
            () if is(PARTIAL) => path.clone(),
            // Where nothing has come in its place, it is the only copy.
            () if is(REPLACED) && target.exists() => path.join(KEPT),
            () => continue,
        };
        let only_kept = holder == path || entries(&path).is_ok_and(|inside| inside.len() <= 1);
        if only_kept && is_part_of_ours(&holder) && is_abandoned(&holder) {
            eprintln!(
                "removing {}, which a killed process has left",
                path.display()
            );
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn is_abandoned(folder: &Path) -> bool {
    if folder.join(LOCK_FILE).exists() {
        return matches!(Lock::take(folder), Ok(Some(_)));
    }
    let written = fs::metadata(folder).and_then(|there| there.modified());
    written.is_ok_and(|written| {
        let age = SystemTime::now().duration_since(written);
        age.is_ok_and(|age| age > ABANDONED_AFTER)
    })
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

/// Creates a folder beside a target, with a name that begins with that of the target and a mark.
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

/// Gives a path the usual permissions. Temporary files and folders can be read by their owner alone.
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

    fn write_run(folder: &Path) {
        fs::create_dir_all(folder.join("checkpoint-5")).unwrap();
        for file in [layout::SETTINGS_FILE, layout::TRIE_FILE, "metrics.jsonl"] {
            fs::write(folder.join(file), "old").unwrap();
        }
    }

    #[test]
    fn a_run_appears_when_it_is_whole_and_is_locked_by_then() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("runs/one");
        let output = OutputFolder::create(&target, false, &[]).unwrap();
        fs::write(output.path().join("file"), "new").unwrap();
        assert!(!target.exists());
        let lock = output.finish().unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "new");
        assert_eq!(names(&folder.path().join("runs")), ["one"]);
        assert!(lock.is_in(&target).unwrap());
        assert!(Lock::take(&target).unwrap().is_none());
    }

    #[test]
    fn nothing_is_replaced_unasked_or_by_half() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("one");
        write_run(&target);
        let old = || fs::read_to_string(target.join("metrics.jsonl")).unwrap() == "old";
        assert!(OutputFolder::create(&target, false, &[]).is_err());
        drop(OutputFolder::create(&target, true, &[]).unwrap());
        assert!(old());
        let output = OutputFolder::create(&target, true, &[]).unwrap();
        assert!(
            Lock::take(&target).unwrap().is_none(),
            "it could be trained"
        );
        output.finish().unwrap();
        assert_eq!(names(&target), ["lock"]);
        assert_eq!(names(folder.path()), ["one"]);
    }

    #[test]
    fn a_run_that_is_trained_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("one");
        write_run(&target);
        let _lock = Lock::take(&target).unwrap().unwrap();
        let refusal = OutputFolder::create(&target, true, &[]).err().unwrap();
        assert!(refusal.to_string().contains("being trained"), "{refusal}");
        assert_eq!(names(folder.path()), ["one"]);
    }

    #[test]
    fn of_two_that_begin_at_once_the_second_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("one");
        let [first, second] = [0, 1].map(|_| OutputFolder::create(&target, false, &[]).unwrap());
        let lock = first.finish().unwrap();
        let refusal = second.finish().err().unwrap();
        assert!(refusal.to_string().contains("another process"), "{refusal}");
        assert!(lock.is_in(&target).unwrap());
        assert_eq!(names(folder.path()), ["one"]);
    }

    #[test]
    fn what_comes_into_a_folder_that_is_to_be_replaced_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("one");
        fs::create_dir(&target).unwrap();
        let [first, second] = [0, 1].map(|_| OutputFolder::create(&target, true, &[]).unwrap());
        write_run(first.path());
        let lock = first.finish().unwrap();
        let refusal = second.finish().err().unwrap();
        assert!(refusal.to_string().contains("another process"), "{refusal}");
        assert!(lock.is_in(&target).unwrap());
        drop(lock);
        let third = OutputFolder::create(&target, true, &[]).unwrap();
        fs::write(target.join("notes.txt"), "precious").unwrap();
        assert!(third.finish().is_err());
        assert!(target.join("notes.txt").exists());
        assert_eq!(names(folder.path()), ["one"]);
    }

    #[test]
    #[cfg(unix)]
    fn a_run_that_cannot_be_finished_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("one");
        write_run(&target);
        let output = OutputFolder::create(&target, true, &[]).unwrap();
        // What is not there cannot reach the disk.
        std::os::unix::fs::symlink("nowhere", output.path().join("link")).unwrap();
        assert!(output.finish().is_err());
        assert!(target.join("metrics.jsonl").exists());
        assert_eq!(names(folder.path()), ["one"]);
    }

    #[test]
    #[cfg(unix)]
    fn files_links_and_folders_of_others_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write_run(&at("run"));
        std::os::unix::fs::symlink(at("run"), at("link")).unwrap();
        fs::write(at("file"), "precious").unwrap();
        write_run(&at("mixed"));
        fs::write(at("mixed/notes.txt"), "precious").unwrap();
        write_run(&at("linked"));
        std::os::unix::fs::symlink(at("file"), at("linked/ranks.csv")).unwrap();
        let before = names(folder.path()).len();
        for name in ["link", "link/", "file", "mixed", "linked", "."] {
            assert!(
                OutputFolder::create(&at(name), true, &[]).is_err(),
                "{name}"
            );
        }
        let input = at("run/checkpoint-5");
        assert!(OutputFolder::create(&at("run"), true, &[&input]).is_err());
        assert_eq!(names(folder.path()).len(), before);
    }

    #[test]
    fn what_killed_processes_left_beside_a_run_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let living = OutputFolder::create(&at("run"), false, &[]).unwrap();
        write_run(&at("run.partial-killed"));
        fs::write(at("run.partial-killed/lock"), "").unwrap();
        write_run(&at("run.partial-fresh"));
        write_run(&at("run.replaced-killed/run"));
        fs::write(at("run.replaced-killed/run/lock"), "").unwrap();
        fs::create_dir(at("run.partial-mine")).unwrap();
        fs::write(at("run.partial-mine/notes.txt"), "precious").unwrap();
        write_run(&at("other.partial-killed"));
        fs::write(at("other.partial-killed/lock"), "").unwrap();
        drop(OutputFolder::create(&at("run"), false, &[]).unwrap());
        assert!(!at("run.partial-killed").exists());
        for kept in [
            "run.partial-fresh",
            "run.partial-mine",
            "other.partial-killed",
        ] {
            assert!(at(kept).exists(), "{kept}");
        }
        assert!(at("run.replaced-killed").exists(), "the only copy");
        drop(living.finish().unwrap());
        remove_abandoned(&at("run"));
        assert!(!at("run.replaced-killed").exists());
    }
}
