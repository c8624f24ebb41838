//! Manages the folder of a run: its settings, trie, metrics and checkpoints. Each of them is written atomically.

mod checks;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_trie::TokenTrie;

use crate::{
    data::arguments::DataArguments,
    io::{
        binary, entries, file_name,
        json::{read_json, write_json},
    },
    model::precision::Place,
    run::{
        checkpoint::{Checkpoint, STATE_FILE, TrainingState},
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
            // Files have moved with the rest, unless they never were there.
            let data = arguments.data.clone();
            let now = |file: &PathBuf| match file.strip_prefix(&data) {
                Ok(name) => folder.join(name),
                Err(_) => file.clone(),
            };
            arguments.train = arguments
                .train
                .as_ref()
                .map(now)
                .filter(|file| file.exists());
            for file in [
                &mut arguments.tables.items,
                &mut arguments.tables.interactions,
            ] {
                *file = file.as_ref().map(now);
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
            "the data of {} are no longer at {}: give their new path with --data",
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
        let checkpoint = Checkpoint::load(
            &path,
            &self.settings.tokenizer,
            base,
            precision,
            &place.device,
        )?;
        let state = &checkpoint.state;
        ensure!(
            state.step == step && state.best.is_none_or(|best| best.step <= step),
            "{} is not the state of step {step}",
            path.join(STATE_FILE).display()
        );
        Ok(checkpoint)
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
             continue from that with msl resume and the folder's new path",
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
mod tests;
