//! The folder of a training run: what it was told, the trie, the metrics, and checkpoints, each whole or not there.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_trie::TokenTrie;

use crate::{
    arguments::RunSettings,
    checkpoint::Checkpoint,
    json::{read_json, write_json},
    output::OutputFolder,
    precision::Place,
};

const SETTINGS_FILE: &str = "training.json";
const TRIE_FILE: &str = "trie.safetensors";
const LOCK_FILE: &str = "lock";
const CHECKPOINT: &str = "checkpoint-";

/// A run's folder that is there.
pub struct RunFolder {
    path: PathBuf,
    settings: RunSettings,
}

impl RunFolder {
    /// Makes the folder of a new run; `save` writes the checkpoint of step 0, so that a run can be gone on with from
    /// the beginning.
    pub fn create(
        path: &Path,
        overwrite: bool,
        settings: &RunSettings,
        trie: &TokenTrie,
        save: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let folder = OutputFolder::create(path, overwrite)?;
        write_json(&folder.path().join(SETTINGS_FILE), settings)?;
        trie.save(folder.path().join(TRIE_FILE))?;
        let first = folder.path().join(format!("{CHECKPOINT}0"));
        fs::create_dir(&first).with_context(|| format!("cannot create {}", first.display()))?;
        save(&first)?;
        folder.finish()?;
        Self::open(path)
    }

    /// Whether a folder is that of a run.
    pub fn is_one(path: &Path) -> bool {
        path.join(SETTINGS_FILE).is_file()
    }

    /// Opens the folder of a run.
    pub fn open(path: &Path) -> Result<Self> {
        let file = path.join(SETTINGS_FILE);
        ensure!(
            file.is_file(),
            "{} is no folder of a run: expected the file {SETTINGS_FILE} in it",
            path.display()
        );
        Ok(Self {
            path: path.to_owned(),
            settings: read_json(&file)?,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the run was told.
    pub fn settings(&self) -> &RunSettings {
        &self.settings
    }

    /// The trie of the catalogue that the run trains on.
    pub fn trie(&self) -> Result<TokenTrie> {
        Ok(TokenTrie::load(self.path.join(TRIE_FILE))?)
    }

    /// The folder of a step's checkpoint.
    pub fn checkpoint_path(&self, step: usize) -> PathBuf {
        self.path.join(format!("{CHECKPOINT}{step}"))
    }

    /// The checkpoint of the latest step.
    pub fn latest(&self, place: &Place) -> Result<Checkpoint> {
        let steps = self.steps()?;
        let step = steps
            .last()
            .with_context(|| format!("{}: expected a folder {CHECKPOINT}…", self.path.display()))?;
        self.load(*step, place)
    }

    /// The checkpoint that counts: the best on the validation rows, or the latest where there were none.
    pub fn best(&self, place: &Place) -> Result<Checkpoint> {
        let latest = self.latest(place)?;
        match latest.state.best {
            Some(best) if best.step != latest.state.step => self.load(best.step, place),
            _ => Ok(latest),
        }
    }

    /// The checkpoint of a step.
    pub fn load(&self, step: usize, place: &Place) -> Result<Checkpoint> {
        let path = self.checkpoint_path(step);
        ensure!(
            path.is_dir(),
            "there is no {}, only the steps {:?}",
            path.display(),
            self.steps()?
        );
        let precision = place.precision.unwrap_or(self.settings.precision);
        Checkpoint::load(&path, &self.settings.tokenizer, precision, &place.device)
    }

    /// Puts the checkpoint of a step there, which `save` writes, and then drops all but this one and the best.
    pub fn save(
        &self,
        step: usize,
        best: Option<usize>,
        save: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let folder = OutputFolder::create(&self.checkpoint_path(step), true)?;
        save(folder.path())?;
        folder.finish()?;
        for old in self.steps()? {
            if old != step && Some(old) != best {
                remove(&self.checkpoint_path(old))?;
            }
        }
        Ok(())
    }

    /// Keeps other processes from training the run for as long as the file is open: it ends with this process.
    pub fn lock(&self) -> Result<File> {
        let path = self.path.join(LOCK_FILE);
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        // Where a file system has no locks, a run is used without.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!(
                "{} is being trained by another process",
                self.path.display()
            );
        }
        Ok(file)
    }

    /// Removes what a run that was killed has left half done.
    pub fn clean(&self) -> Result<()> {
        for entry in self.entries()? {
            let name = entry.file_name().unwrap_or_default().to_string_lossy();
            if OutputFolder::is_left_over(&name) {
                remove(&entry)?;
            }
        }
        Ok(())
    }

    /// The steps that there are checkpoints of, in order.
    fn steps(&self) -> Result<Vec<usize>> {
        let step = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            name.strip_prefix(CHECKPOINT)?.parse().ok()
        };
        let mut steps: Vec<usize> = self.entries()?.into_iter().filter_map(step).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn entries(&self) -> Result<Vec<PathBuf>> {
        fs::read_dir(&self.path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .with_context(|| format!("cannot read the folder {}", self.path.display()))
    }
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn settings() -> RunSettings {
        let words = ["msl", "train", "--data", "data", "--output", "run"];
        match Arguments::parse_from(words).command {
            Command::Train(arguments) => arguments.run,
            _ => unreachable!("these are the words of a training"),
        }
    }

    fn write(folder: &Path) -> Result<()> {
        Ok(fs::write(folder.join("weights"), "some")?)
    }

    fn run(folder: &Path) -> RunFolder {
        let trie = TokenTrie::new([(1, vec![1, 2])]).unwrap();
        RunFolder::create(&folder.join("run"), false, &settings(), &trie, write).unwrap()
    }

    #[test]
    fn a_run_is_what_it_was_told_from_its_first_moment() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        assert_eq!(run.settings(), &settings());
        assert_eq!(run.steps().unwrap(), [0]);
        assert_eq!(run.trie().unwrap().item_count(), 1);
        assert!(RunFolder::open(folder.path()).is_err());
    }

    #[test]
    fn the_last_and_the_best_checkpoint_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        for (step, best, kept) in [
            (5, None, vec![5]),
            (10, Some(10), vec![10]),
            (15, Some(10), vec![10, 15]),
            (100, Some(10), vec![10, 100]),
            (105, Some(105), vec![105]),
        ] {
            run.save(step, best, write).unwrap();
            assert_eq!(run.steps().unwrap(), kept);
        }
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_leaves_the_last_one_there() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        run.save(5, None, write).unwrap();
        let full = |folder: &Path| {
            write(folder)?;
            bail!("no space left on device")
        };
        assert!(run.save(10, None, full).is_err());
        assert_eq!(run.steps().unwrap(), [5]);
        // What a killed process leaves is neither a checkpoint nor in the way.
        let left = run.path().join("checkpoint-10.partial-abc");
        fs::create_dir(&left).unwrap();
        assert_eq!(run.steps().unwrap(), [5]);
        run.clean().unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn a_run_is_trained_by_one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let other = RunFolder::open(run.path()).unwrap();
        let lock = run.lock().unwrap();
        assert!(other.lock().is_err());
        drop(lock);
        other.lock().unwrap();
    }
}
