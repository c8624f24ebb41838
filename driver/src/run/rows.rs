//! Reads and tokenizes the rows of a run.

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use candle_trie::TokenTrie;

use crate::{
    data::{
        catalogue::Catalogue,
        dataset::{Dataset, sample},
        examples::{Example, examples, warn_of_long_rows},
        prompt::Prompt,
        responses::Responses,
        tokenizer::TextTokenizer,
    },
    model::Llama,
    random::{Purpose, random},
    run::{made_with::hash_rows, settings::RunSettings},
    train::Trainer,
};

/// The training and validation rows of a run, and the wording of their prompts.
pub struct RunRows {
    dataset: Dataset,
    prompt: Prompt,
}

/// The rows of a run in tokens.
pub struct TokenizedRows {
    /// The items.
    pub catalogue: Catalogue,
    /// The titles of the items in tokens, and their trie.
    pub responses: Responses,
    /// Rows to train on.
    pub training: Vec<Example>,
    /// Rows to choose a checkpoint by.
    pub validation: Vec<Example>,
}

impl RunRows {
    /// Reads the rows that the settings ask for, and says on standard error what they are.
    pub fn read(settings: &RunSettings) -> Result<Self> {
        let seed = settings.training.seed;
        let mut dataset = Dataset::read(&settings.data, seed)?;
        dataset.training = sample(
            &dataset.training,
            settings.samples,
            &mut random(seed, Purpose::Sample),
        );
        ensure!(
            !dataset.training.is_empty(),
            "--samples 0 leaves nothing to train on"
        );
        dataset.validation = sample(
            &dataset.validation,
            Some(settings.data.validation),
            &mut random(seed, Purpose::Validation),
        );
        ensure!(
            settings.data.validation == 0 || !dataset.validation.is_empty(),
            "--validation {}: {} has no rows for validation",
            settings.data.validation,
            settings.data.data.display()
        );
        if dataset.validation.len() < settings.data.validation {
            eprintln!(
                "warning: --validation asks for {} rows, and {} has {} for validation",
                settings.data.validation,
                settings.data.data.display(),
                dataset.validation.len()
            );
        }
        Ok(Self {
            dataset,
            prompt: settings.prompt.clone(),
        })
    }

    /// Makes a model to train from scratch, with its tokenizer.
    pub fn new_model(
        &self,
        settings: &RunSettings,
        device: &Device,
    ) -> Result<(Llama, TextTokenizer)> {
        let tokenizer = (settings.tokenizer).open(self.catalogue(), &self.prompt)?;
        let config = (settings.model).config(tokenizer.vocabulary(), tokenizer.end());
        let model = Llama::random(config, settings.training.seed, DType::F32, device)?;
        Ok((model, tokenizer))
    }

    /// Tokenizes the rows, with the trie that a run keeps of its catalogue where there is one.
    pub fn tokenize(
        self,
        tokenizer: &TextTokenizer,
        trie: Option<TokenTrie>,
    ) -> Result<TokenizedRows> {
        let responses = Responses::open(self.catalogue(), tokenizer, trie)?;
        let tokenize = |rows| examples(rows, self.catalogue(), &self.prompt, tokenizer, &responses);
        Ok(TokenizedRows {
            training: tokenize(&self.dataset.training)?,
            validation: tokenize(&self.dataset.validation)?,
            responses,
            catalogue: self.dataset.catalogue,
        })
    }

    /// Returns the items.
    pub fn catalogue(&self) -> &Catalogue {
        &self.dataset.catalogue
    }
}

impl TokenizedRows {
    /// Warns of rows that are longer than the model was made for.
    pub fn warn_of_long_rows(&self, model: &Llama) {
        let rows = self.training.iter().chain(&self.validation);
        warn_of_long_rows(
            rows.map(Example::tokens),
            model.config().max_position_embeddings,
        );
    }

    /// Returns the hash of the rows that are trained on and validated by.
    pub fn hash(&self) -> String {
        hash_rows(&self.training, &self.validation)
    }

    /// Makes the loss and the optimizer of a training with these rows.
    pub fn trainer<'a>(
        &'a self,
        model: &'a Llama,
        settings: &'a RunSettings,
    ) -> Result<Trainer<'a>> {
        let trie = self.responses.trie();
        Trainer::new(model, trie, &settings.loss, &settings.training)
    }
}
