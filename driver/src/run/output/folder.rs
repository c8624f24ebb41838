use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::{check_apart, parent};
use crate::run::{
    layout::{self, KEPT, Kind, LOCK_FILE, PARTIAL, REPLACED, entries, is_part_of_ours, named},
    lock::Lock,
};

/// A folder without a lock is taken for one that was left after this time: its owner locks it at once.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// A folder that is written beside its place and put there when it is complete. Dropped before that, it leaves nothing
/// behind.
pub struct PartialFolder {
    partial: TempDir,
    target: PathBuf,
}

impl PartialFolder {
    /// Begins a folder, and those that it is to be in.
    pub fn beside(target: PathBuf) -> Result<Self> {
        let parent = parent(&target);
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create the folder {}", parent.display()))?;
        Ok(Self {
            partial: beside(&target, PARTIAL)?,
            target,
        })
    }

    /// Where to write now.
    pub fn path(&self) -> &Path {
        self.partial.path()
    }

    /// Puts the complete folder in its place. It has reached the disk before it is there, and what it replaces stays
    /// there until then; a process that is killed between the two leaves both beside the place.
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
        // A folder that has come to be there since is not replaced, unless it is empty.
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
                "another process has made {} meanwhile: name another --output",
                target.display()
            );
            return Err(error).with_context(cannot);
        }
        // It is no longer where it would be deleted.
        let _ = self.partial.keep();
        sync(parent(target)).with_context(cannot)
    }
}

/// The folder that `--output` names, while it is written.
pub struct OutputFolder {
    folder: PartialFolder,
    /// Whether what is at its place may be replaced.
    overwrite: bool,
    /// The lock of the run that is there, which nobody may train until it is replaced.
    old: Option<Lock>,
    /// Its own lock, which it has before anybody can see it.
    lock: Lock,
}

impl OutputFolder {
    /// Begins the folder. One that is there already is an error, unless it may be replaced: with `overwrite`, a run that
    /// nobody trains or a merged model, and neither `inputs` nor what holds them.
    pub fn create(target: &Path, overwrite: bool, inputs: &[&Path]) -> Result<Self> {
        // Without what stands behind the last name: a link is told from what it names.
        let target: PathBuf = target.components().collect();
        let Ok(there) = fs::symlink_metadata(&target) else {
            return Self::begin(target, false, None);
        };
        ensure!(
            overwrite,
            "{} is there already: name another --output, or give --overwrite",
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

    /// Where to write now.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts the complete folder in its place, still locked.
    pub fn finish(self) -> Result<Lock> {
        if let Some(old) = &self.old {
            ensure!(
                old.is_in(&self.folder.target)?,
                "{} is no longer the run that was to be replaced: it was moved or deleted meanwhile",
                self.folder.target.display()
            );
        }
        self.folder.publish(self.overwrite)?;
        Ok(self.lock)
    }
}

/// The lock of a folder that no other process may have.
fn locked(folder: &Path) -> Result<Lock> {
    Lock::take(folder)?.with_context(|| {
        format!(
            "{} is being trained by another process: wait for its end, or interrupt it",
            folder.display()
        )
    })
}

/// Removes what processes that were killed have left beside a place: what a living one writes is locked, and what does
/// not look like ours is not touched.
pub fn remove_abandoned(target: &Path) {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    for path in entries(parent(target)).unwrap_or_default() {
        let found = path.file_name().unwrap_or_default().to_string_lossy();
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
                "removing {}, which a process that was killed has left",
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
