//! The folder of a training run: what it was told, the trie, the metrics, and checkpoints, each whole or not there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use candle_trie::TokenTrie;

use crate::{
    arguments::RunSettings,
    checkpoint::Checkpoint,
    json::{read_json, write_json},
    output::OutputFolder,
};

const SETTINGS_FILE: &str = "training.json";
const TRIE_FILE: &str = "trie.safetensors";
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
    pub fn latest(&self) -> Result<Checkpoint> {
        let steps = self.steps()?;
        let step = steps
            .last()
            .with_context(|| format!("{}: expected a folder {CHECKPOINT}…", self.path.display()))?;
        self.load(*step)
    }

    /// The checkpoint that counts: the best on the validation rows, or the latest where there were none.
    pub fn best(&self) -> Result<Checkpoint> {
        let latest = self.latest()?;
        match latest.state.best {
            Some(best) if best.step != latest.state.step => self.load(best.step),
            _ => Ok(latest),
        }
    }

    /// The checkpoint of a step.
    pub fn load(&self, step: usize) -> Result<Checkpoint> {
        let path = self.checkpoint_path(step);
        ensure!(
            path.is_dir(),
            "there is no {}, only the steps {:?}",
            path.display(),
            self.steps()?
        );
        Checkpoint::load(&path, self.settings.tokenizer.end_token.as_deref())
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
