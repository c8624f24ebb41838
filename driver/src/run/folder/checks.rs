//! Checks that the data and the model of a run are still those that it was made with.

use anyhow::{Result, ensure};

use super::RunFolder;
use crate::{
    data::catalogue::Catalogue,
    run::made_with::{hash_model, hash_titles},
};

impl RunFolder {
    /// Fails where a catalogue is not the one that the run was trained on.
    pub fn check_titles(&self, catalogue: &Catalogue) -> Result<()> {
        let Some(made_with) = &self.made_with else {
            return Ok(());
        };
        ensure!(
            made_with.titles == hash_titles(catalogue),
            "{} was trained on another catalogue: items, titles or codes of {} have changed since. Give the data as they were \
             with --data, or train anew",
            self.path.display(),
            self.settings.data.data.display()
        );
        Ok(())
    }

    /// Fails where the rows that a training would continue with, by their hash, are not those that it began with.
    pub fn check_rows(&self, rows: &str) -> Result<()> {
        let Some(made_with) = &self.made_with else {
            return Ok(());
        };
        ensure!(
            made_with.rows == rows,
            "{} was begun with other rows: those of {} have changed since, and its result would not be \
             bit-identical to that of an uninterrupted run. Give the data as they were with --data, or train anew",
            self.path.display(),
            self.settings.data.data.display()
        );
        Ok(())
    }

    /// Fails where the pretrained model is not there, or not the one that the run was trained with.
    pub fn check_model(&self) -> Result<()> {
        let Some(model) = &self.settings.pretrained else {
            return Ok(());
        };
        ensure!(
            model.exists(),
            "the pretrained model of {} is no longer at {}: give its new path with --model",
            self.path.display(),
            model.display()
        );
        let weights = self
            .made_with
            .as_ref()
            .and_then(|made| made.weights.as_ref());
        if let Some(weights) = weights {
            ensure!(
                *weights == hash_model(model)?,
                "the adapters of {} belong to another model than {}: its weights or its config.json have changed since, \
                 as they do where the adapters are merged into them. Name the model as it was with --model. (To add the \
                 adapters to other weights on purpose, copy the folder of a checkpoint out of the run, and merge that)",
                self.path.display(),
                model.display()
            );
        }
        Ok(())
    }
}
