//! Reads and tokenizes the rows of a run.

use std::{ops::Range, path::Path};

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use candle_trie::TokenTrie;
use rayon::prelude::*;

use crate::{
    data::{
        catalogue::Catalogue,
        dataset::{Dataset, sample},
        examples::{Example, examples, warn_of_long_rows},
        prompt::Prompt,
        responses::Responses,
        semantic_ids::SemanticIds,
        tokenizer::TextTokenizer,
    },
    exchange::Exchange,
    model::{Llama, NamedText, pretrained::Pretrained},
    random::{Purpose, random},
    run::{
        made_with::hash_rows,
        settings::{NewTokens, RunSettings},
    },
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

    /// Opens a pretrained model and gives it new adapters, and rows for the codes of the items that it does not have.
    pub fn adapted_model(
        &self,
        settings: &RunSettings,
        base: &Path,
        device: &Device,
    ) -> Result<(Llama, TextTokenizer)> {
        let pretrained = Pretrained::open(base, settings.tokenizer.end_token.as_deref())?;
        let (mut model, tokenizer) = pretrained.read(settings.precision, device)?;
        model.adapt(&settings.adapter, settings.training.seed)?;
        let Some(codes) = self.catalogue().semantic_ids() else {
            return Ok((model, tokenizer));
        };
        let (tokenizer, new) = tokenizer.with_codes(codes.codes())?;
        if !new.is_empty() {
            let texts = match settings.new_tokens.unwrap_or_default() {
                NewTokens::Titles => self.named_texts(codes, &tokenizer, &new)?,
                NewTokens::Mean => Vec::new(),
            };
            let rows = model.initial_rows(new.clone(), &texts)?;
            model.add_tokens(new.clone(), rows)?;
            eprintln!(
                "new tokens: {} to {} of {} codes, whose rows are trained beside the adapters",
                new.start,
                new.end - 1,
                codes.codes().len()
            );
        }
        Ok((model, tokenizer))
    }

    /// Returns the titles of the items in tokens that the model has, each with the new tokens among its item's codes.
    fn named_texts(
        &self,
        codes: &SemanticIds,
        tokenizer: &TextTokenizer,
        new: &Range<usize>,
    ) -> Result<Vec<NamedText>> {
        let tokens = codes.tokens(tokenizer)?;
        let items = self.catalogue().items().par_iter().enumerate();
        let texts = items.map(|(number, item)| {
            let path = codes.path(number).unwrap_or_default().iter();
            let path = path.map(|&code| tokens[code as usize] as usize);
            let mut text = tokenizer.encode(&item.title)?;
            text.retain(|&token| (token as usize) < new.start);
            Ok(NamedText {
                text,
                added: path
                    .filter_map(|token| token.checked_sub(new.start))
                    .map(|token| token as u32)
                    .collect(),
            })
        });
        texts.collect()
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
        exchange: &'a dyn Exchange,
    ) -> Result<Trainer<'a>> {
        let trie = self.responses.trie();
        Trainer::new(model, trie, &settings.loss, &settings.training, exchange)
    }
}
