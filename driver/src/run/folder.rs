//! Manages the folder of a run: its settings, trie, metrics and checkpoints. Each of them is written atomically.

mod checks;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_trie::TokenTrie;

use crate::{
    data::dataset::DataArguments,
    io::{
        binary, entries, file_name,
        json::{read_json, write_json},
    },
    model::precision::Place,
    run::{
        checkpoint::{Checkpoint, TrainingState},
        layout::{
            CHECKPOINT, MADE_WITH_FILE, SETTINGS_FILE, TRIE_FILE, check_contained, checkpoint_step,
            is_left_over,
        },
        lock::Lock,
        made_with::{MadeWith, hash_file, hash_tokenizer},
        output_folder::{OutputFolder, PartialFolder, remove_abandoned},
        settings::RunSettings,
    },
};

/// The folder of a run.
pub struct RunFolder {
    path: PathBuf,
    settings: RunSettings,
    made_with: Option<MadeWith>,
}

impl RunFolder {
    /// Creates the folder of a new run at the place of `output`, and locks it. `save` writes the checkpoint of step 0,
    /// from which the run can be resumed, and returns what the run is made with.
    pub fn create(
        path: &Path,
        output: OutputFolder,
        settings: &RunSettings,
        trie: &TokenTrie,
        save: impl FnOnce(&Path) -> Result<MadeWith>,
    ) -> Result<(Self, Lock)> {
        let at = |name: &str| output.path().join(name);
        write_json(&at(SETTINGS_FILE), settings)?;
        trie.save(at(TRIE_FILE))?;
        let first = at(&format!("{CHECKPOINT}0"));
        fs::create_dir(&first).with_context(|| format!("cannot create {}", first.display()))?;
        let made_with = MadeWith {
            trie: Some(hash_file(&at(TRIE_FILE))?),
            ..save(&first)?
        };
        write_json(&at(MADE_WITH_FILE), &made_with)?;
        let lock = output.finish()?;
        let run = Self {
            path: path.to_owned(),
            settings: settings.clone(),
            made_with: Some(made_with),
        };
        Ok((run, lock))
    }

    /// Tells whether a folder is that of a run.
    pub fn is_one(path: &Path) -> bool {
        path.join(SETTINGS_FILE).is_file()
    }

    /// Opens the folder of a run. Nothing in it may lead out of it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = path.join(SETTINGS_FILE);
        ensure!(
            file.symlink_metadata().is_ok(),
            "{} is no folder of a run: expected the file {SETTINGS_FILE} in it",
            path.display()
        );
        check_contained(path)?;
        let made_with = path.join(MADE_WITH_FILE);
        let made_with = match made_with.exists() {
            true => Some(read_json(&made_with)?),
            false => {
                eprintln!(
                    "warning: {} was made by an earlier version and has no {MADE_WITH_FILE}: whether its data and its \
                     model are still the same is not checked",
                    path.display()
                );
                None
            }
        };
        Ok(Self {
            path: path.to_owned(),
            settings: read_json(&file)?,
            made_with,
        })
    }

    /// Replaces the paths of the data and of the pretrained model, if they have moved.
    pub fn moved(mut self, data: Option<&Path>, model: Option<&Path>) -> Result<Self> {
        if let Some(folder) = data {
            let arguments = &mut self.settings.data;
            // The training rows have moved with the rest, unless they never were there.
            if let Some(train) = &arguments.train {
                let now = match train.strip_prefix(&arguments.data) {
                    Ok(name) => folder.join(name),
                    Err(_) => train.clone(),
                };
                arguments.train = now.exists().then_some(now);
            }
            arguments.data = folder.to_owned();
            *arguments = arguments.absolute()?;
        }
        if let Some(model) = model {
            ensure!(
                self.settings.pretrained.is_some(),
                "{} was trained from scratch: it belongs to no --model",
                self.path.display()
            );
            let model = std::path::absolute(model)
                .with_context(|| format!("cannot locate {}", model.display()))?;
            self.settings.pretrained = Some(model);
        }
        Ok(self)
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the settings of the run.
    pub fn settings(&self) -> &RunSettings {
        &self.settings
    }

    /// Returns the hashes of what the run was made with; runs of earlier versions do not have them.
    pub fn made_with(&self) -> Option<&MadeWith> {
        self.made_with.as_ref()
    }

    /// Returns the options of its data, whose folder exists.
    pub fn data(&self) -> Result<&DataArguments> {
        let data = &self.settings.data;
        ensure!(
            data.data.exists(),
            "the data of {} are no longer at {}: say with --data where they are now",
            self.path.display(),
            data.data.display()
        );
        Ok(data)
    }

    /// Loads the trie of the run's catalogue.
    pub fn trie(&self) -> Result<TokenTrie> {
        let path = self.path.join(TRIE_FILE);
        binary::open(&path)?;
        if let Some(trie) = self.made_with.as_ref().and_then(|made| made.trie.as_ref()) {
            ensure!(
                *trie == hash_file(&path)?,
                "{} is not the trie that the run was trained with",
                path.display()
            );
        }
        Ok(TokenTrie::load(path)?)
    }

    /// Returns the folder of a step's checkpoint.
    pub fn checkpoint_path(&self, step: usize) -> PathBuf {
        self.path.join(format!("{CHECKPOINT}{step}"))
    }

    /// Loads the checkpoint of the latest step.
    pub fn latest(&self, place: &Place) -> Result<Checkpoint> {
        self.load(self.latest_step()?, place)
    }

    /// Loads the best checkpoint on the validation rows, or the latest where there were none.
    pub fn best(&self, place: &Place) -> Result<Checkpoint> {
        let latest = self.latest_step()?;
        let best = TrainingState::read(&self.checkpoint_path(latest))?.best;
        self.load(best.map_or(latest, |best| best.step), place)
    }

    fn latest_step(&self) -> Result<usize> {
        (self.steps()?.last().copied())
            .with_context(|| format!("{}: expected a folder {CHECKPOINT}…", self.path.display()))
    }

    /// Loads the checkpoint of a step, and checks that its tokenizer and its model are those of the run.
    pub fn load(&self, step: usize, place: &Place) -> Result<Checkpoint> {
        let path = self.checkpoint_path(step);
        ensure!(
            path.is_dir(),
            "there is no {}, only the steps {:?}",
            path.display(),
            self.steps()?
        );
        if let Some(made_with) = &self.made_with {
            ensure!(
                made_with.tokenizer == hash_tokenizer(&path)?,
                "{}: its tokenizer is not the one that the run was trained with",
                path.display()
            );
        }
        self.check_model()?;
        let precision = place.precision.unwrap_or(self.settings.precision);
        let base = self.settings.pretrained.as_deref();
        Checkpoint::load(
            &path,
            &self.settings.tokenizer,
            base,
            precision,
            &place.device,
        )
    }

    /// Saves the checkpoint of a step, which `save` writes, and then deletes all but this one and the best.
    pub fn save(
        &self,
        lock: &Lock,
        step: usize,
        best: Option<usize>,
        save: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        self.check_there(lock)?;
        let folder = PartialFolder::beside(self.checkpoint_path(step))?;
        save(folder.path())?;
        folder.publish(true)?;
        for old in self.steps()? {
            if old != step && Some(old) != best {
                remove(&self.checkpoint_path(old))?;
            }
        }
        Ok(())
    }

    /// Keeps other processes from training or replacing the run.
    pub fn lock(&self) -> Result<Lock> {
        match Lock::take(&self.path)? {
            Some(lock) => Ok(lock),
            None => bail!(
                "{} is being trained by another process",
                self.path.display()
            ),
        }
    }

    /// Fails where the run's folder is no longer the one that was locked.
    pub fn check_there(&self, lock: &Lock) -> Result<()> {
        ensure!(
            lock.is_in(&self.path)?,
            "{} was moved, deleted or replaced while the run was trained. Its steps since the last checkpoint are lost: \
             go on from there with msl resume, where the folder is now",
            self.path.display()
        );
        Ok(())
    }

    /// Removes what a killed process has left in the folder of the run and beside it. The caller holds the lock.
    pub fn clean(&self, _lock: &Lock) -> Result<()> {
        remove_abandoned(&self.path);
        for entry in entries(&self.path)? {
            let name = file_name(&entry);
            if !is_left_over(&name) {
                continue;
            }
            if entry.is_dir() {
                remove(&entry)?;
                continue;
            }
            // An evaluation may be writing it, which needs no lock of the run.
            if fs::File::open(&entry).is_ok_and(|file| file.try_lock().is_ok()) {
                fs::remove_file(&entry)
                    .with_context(|| format!("cannot remove {}", entry.display()))?;
            }
        }
        Ok(())
    }

    /// Returns the steps of the checkpoints, in order.
    fn steps(&self) -> Result<Vec<usize>> {
        let step = |path: PathBuf| checkpoint_step(path.file_name()?.to_str()?);
        let mut steps: Vec<usize> = entries(&self.path)?.into_iter().filter_map(step).collect();
        steps.sort_unstable();
        Ok(steps)
    }
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::commands::arguments::{Arguments, Command};

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

    fn run(folder: &Path) -> (RunFolder, Lock) {
        let trie = TokenTrie::new([(1, vec![1, 2])]).unwrap();
        let path = folder.join("run");
        let output = OutputFolder::create(&path, false, &[]).unwrap();
        let save = |folder: &Path| {
            write(folder)?;
            let hash = || "0".repeat(64);
            Ok(MadeWith {
                titles: hash(),
                rows: hash(),
                tokenizer: hash(),
                trie: None,
                weights: None,
            })
        };
        RunFolder::create(&path, output, &settings(), &trie, save).unwrap()
    }

    #[test]
    fn a_run_is_what_it_was_told_from_its_first_moment() {
        let folder = tempfile::tempdir().unwrap();
        let (run, lock) = run(folder.path());
        assert_eq!(run.settings(), &settings());
        assert_eq!(run.steps().unwrap(), [0]);
        assert_eq!(run.trie().unwrap().item_count(), 1);
        assert!(run.lock().is_err(), "it is locked from its first moment");
        drop(lock);
        let opened = RunFolder::open(run.path()).unwrap();
        assert_eq!(opened.made_with(), run.made_with());
        assert!(RunFolder::open(folder.path()).is_err());
    }

    #[test]
    fn a_trie_that_is_another_or_a_pointer_of_git_lfs_is_named_as_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (run, _lock) = run(folder.path());
        let path = run.path().join(TRIE_FILE);
        let refusal = || format!("{:#}", run.trie().unwrap_err());
        fs::write(
            &path,
            "version https://git-lfs.github.com/spec/v1\noid sha256:0",
        )
        .unwrap();
        let pointer = refusal();
        assert!(
            pointer.contains(TRIE_FILE) && pointer.contains("git-lfs"),
            "{pointer}"
        );
        TokenTrie::new([(1, vec![1, 3])])
            .unwrap()
            .save(&path)
            .unwrap();
        assert!(refusal().contains("not the trie that the run was trained with"));
    }

    #[test]
    fn the_last_and_the_best_checkpoint_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (run, lock) = run(folder.path());
        for (step, best, kept) in [
            (5, None, vec![5]),
            (10, Some(10), vec![10]),
            (15, Some(10), vec![10, 15]),
            (100, Some(10), vec![10, 100]),
            (105, Some(105), vec![105]),
        ] {
            run.save(&lock, step, best, write).unwrap();
            assert_eq!(run.steps().unwrap(), kept);
        }
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_leaves_the_last_one_there() {
        let folder = tempfile::tempdir().unwrap();
        let (run, lock) = run(folder.path());
        run.save(&lock, 5, None, write).unwrap();
        let full = |folder: &Path| {
            write(folder)?;
            bail!("no space left on device")
        };
        assert!(run.save(&lock, 10, None, full).is_err());
        assert_eq!(run.steps().unwrap(), [5]);
        // What a killed process leaves is neither a checkpoint nor in the way.
        let left = run.path().join("checkpoint-10.partial-abc");
        fs::create_dir(&left).unwrap();
        assert_eq!(run.steps().unwrap(), [5]);
        run.clean(&lock).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn a_checkpoint_is_not_written_into_a_folder_that_is_no_longer_the_runs() {
        let folder = tempfile::tempdir().unwrap();
        let (run, lock) = run(folder.path());
        fs::rename(run.path(), folder.path().join("moved")).unwrap();
        let refusal = run.save(&lock, 5, None, write).unwrap_err().to_string();
        assert!(
            refusal.contains("was moved, deleted or replaced"),
            "{refusal}"
        );
        assert!(!run.path().exists());
        let (other, _other_lock) = self::run(folder.path());
        assert!(run.save(&lock, 5, None, write).is_err());
        assert_eq!(other.steps().unwrap(), [0]);
    }

    #[test]
    #[cfg(unix)]
    fn nothing_in_a_run_leads_out_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (run, _lock) = run(folder.path());
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        for name in ["ranks.csv", "evaluation.json", "checkpoint-0/state.json"] {
            let path = run.path().join(name);
            std::os::unix::fs::symlink(&victim, &path).unwrap();
            let refusal = RunFolder::open(run.path()).err().unwrap().to_string();
            assert!(
                refusal.contains(name) && refusal.contains("symbolic link"),
                "{refusal}"
            );
            fs::remove_file(path).unwrap();
        }
        RunFolder::open(run.path()).unwrap();
    }
}
