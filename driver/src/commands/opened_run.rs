use anyhow::{Context, Result};

use crate::{
    data::{dataset::Dataset, responses::Responses},
    model::precision::Place,
    run::{checkpoint::Checkpoint, folder::RunFolder},
};

/// A trained run with the catalogue that it was trained on.
pub struct OpenedRun {
    pub folder: RunFolder,
    pub checkpoint: Checkpoint,
    pub dataset: Dataset,
    pub responses: Responses,
}

impl OpenedRun {
    /// Opens a run at a step, or where it was best, and its data.
    pub fn new(folder: RunFolder, step: Option<usize>, place: &Place) -> Result<Self> {
        let data = folder.data()?;
        let dataset = Dataset::read(data, folder.settings().training.seed)?;
        folder.check_titles(&dataset.catalogue)?;
        let checkpoint = match step {
            Some(step) => folder.load(step, place)?,
            None => folder.best(place)?,
        };
        let (catalogue, tokenizer) = (&dataset.catalogue, &checkpoint.tokenizer);
        let responses = Responses::open(catalogue, tokenizer, Some(folder.trie()?))
            .with_context(|| folder.path().display().to_string())?;
        Ok(Self {
            folder,
            checkpoint,
            dataset,
            responses,
        })
    }

    /// Returns the temperature to recommend at: the one that was asked for, or that of training.
    pub fn temperature(&self, asked: Option<f64>) -> f64 {
        asked.unwrap_or(self.checkpoint.state.temperature.value)
    }
}
