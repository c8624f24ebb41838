//! The whole model.

mod new_tokens;

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var, safetensors};

use super::{
    Cache, LlamaConfig, Parameters,
    cache::{LayerCache, Sequence},
    forward::Sequences,
    head::LmHead,
    layer::Layer,
    lora::{Adapter, LoraSettings},
    norm::Norm,
    parameters::{NamedTensors, NamedVariables, Weights, cast},
};
use crate::{
    ops::{self, KeysValues},
    random::{Purpose, random},
};

pub use new_tokens::{AddedRows, NamedText, trained_rows_of};

/// A Llama-style model: RMSNorm, rotary positions, grouped-query attention and gated feed-forward blocks.
pub struct Llama {
    config: LlamaConfig,
    /// `[own tokens, hidden]`.
    embedding: Tensor,
    /// Radians by which each pair of a head's elements turns from one position to the next.
    frequencies: Vec<f64>,
    layers: Vec<Layer>,
    /// The norm behind the last layer.
    norm: Norm,
    /// `[own tokens, hidden]`; `None` where the embedding is the head.
    head: Option<Tensor>,
    /// The rows of tokens that were added to the own ones.
    added: Option<AddedRows<Var>>,
    /// All weights, without adapters and added tokens.
    weights: NamedTensors,
    /// The type in which each of the weights was stored.
    stored: Vec<DType>,
    /// What is trained.
    parameters: NamedVariables,
    adapters: Option<LoraSettings>,
}

impl Llama {
    /// Makes a model with random weights, to be trained.
    pub fn random(config: LlamaConfig, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        let random = random(seed, Purpose::Weights);
        Self::new(config, Parameters::random(random, dtype, device))
    }

    /// Makes a model of weights that were trained before. With `frozen`, nothing of it can be trained until it gets
    /// adapters.
    pub fn of(
        config: LlamaConfig,
        weights: Box<dyn Weights>,
        dtype: DType,
        device: &Device,
        frozen: bool,
    ) -> Result<Self> {
        Self::new(config, Parameters::of(weights, dtype, device, frozen))
    }

    fn new(mut config: LlamaConfig, mut parameters: Parameters) -> Result<Self> {
        config.check()?;
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let shape = [vocabulary, hidden];
        let embedding = match parameters.given(EMBEDDING, &shape)? {
            None if config.tie_word_embeddings => parameters.given(HEAD, &shape)?,
            given => given,
        };
        let embedding = match embedding {
            Some(given) => parameters.keep(EMBEDDING, given)?,
            None => parameters.matrix(EMBEDDING, vocabulary, hidden)?,
        };
        let layers = (0..config.num_hidden_layers)
            .map(|layer| Layer::new(&config, &mut parameters, &layer_name(layer)))
            .collect::<Result<_>>()?;
        let norm = Norm::new(&config, &mut parameters, "model.norm.weight".into(), hidden)?;
        // As transformers from version 5 on: what the files hold counts more than whether they are to be tied.
        let head = match parameters.given(HEAD, &shape)? {
            Some(given) if config.tie_word_embeddings => {
                if same(&given.tensor, &embedding)? {
                    None
                } else {
                    eprintln!(
                        "tie_word_embeddings is true, but {HEAD} is there and differs from {EMBEDDING}: it is the head"
                    );
                    config.tie_word_embeddings = false;
                    Some(parameters.keep(HEAD, given)?)
                }
            }
            Some(given) => Some(parameters.keep(HEAD, given)?),
            None if config.tie_word_embeddings => None,
            None => {
                let head = parameters.matrix(HEAD, vocabulary, hidden);
                Some(head.context("tie_word_embeddings is false, so that there must be a head")?)
            }
        };
        let kept = parameters.finish()?;
        Ok(Self {
            frequencies: config.rotary_frequencies()?,
            config,
            embedding,
            layers,
            norm,
            head,
            added: None,
            weights: kept.weights,
            stored: kept.stored,
            parameters: kept.trained,
            adapters: None,
        })
    }

    /// Freezes the model and gives adapters to the layers that the settings name. Only the adapters are trained then. A new
    /// adapter changes no result.
    pub fn adapt(&mut self, settings: &LoraSettings, seed: u64) -> Result<()> {
        settings.check()?;
        ensure!(
            self.added.is_none(),
            "a model gets its adapters before tokens are added to it"
        );
        self.adapters = Some(settings.clone());
        let mut random = random(seed, Purpose::Weights);
        self.embedding = self.embedding.detach();
        self.head = self.head.as_ref().map(Tensor::detach);
        self.norm.freeze();
        self.parameters.clear();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.freeze();
            for (name, linear) in layer.linears() {
                let name = format!("{}.{name}", layer_name(index));
                if !settings.wants(&name) {
                    continue;
                }
                let stream = self.parameters.len() as u64;
                let shape = linear.shape()?;
                let adapter = Adapter::new(settings, &self.embedding, shape, stream, &mut random)?;
                (self.parameters).push((format!("{name}.lora_A.weight"), adapter.down.clone()));
                (self.parameters).push((format!("{name}.lora_B.weight"), adapter.up.clone()));
                linear.adapt(adapter);
            }
        }
        Ok(())
    }

    /// Returns all weights under Hugging Face's names, with each adapter added to the weight that it stands beside, and
    /// the rows of added tokens behind those of the own ones.
    pub fn merged_weights(&mut self) -> Result<NamedTensors> {
        let mut merged = self.weights.clone();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for (name, linear) in layer.linears() {
                let name = format!("{}.{name}.weight", layer_name(index));
                if let Some((_, weight)) = merged.iter_mut().find(|(found, _)| *found == name) {
                    *weight = linear.merged_weight()?;
                }
            }
        }
        for (name, weight) in &mut merged {
            *weight = self.with_added_rows(name, weight)?;
        }
        Ok(merged)
    }

    /// Returns the [merged weights](Self::merged_weights) in one type, or each in the type in which it was stored.
    pub fn merged_weights_in(&mut self, dtype: Option<DType>) -> Result<NamedTensors> {
        let merged = self.merged_weights()?.into_iter().zip(&self.stored);
        merged
            .map(|((name, weight), &stored)| {
                let weight = cast(&name, &weight, dtype.unwrap_or(stored))?;
                Ok((name, weight))
            })
            .collect()
    }

    /// Returns the paths of all linear layers that an adapter can stand beside.
    pub fn linear_paths(&mut self) -> Vec<String> {
        let layers = self.layers.iter_mut().enumerate();
        layers
            .flat_map(|(index, layer)| {
                let names = layer.linears().map(|(name, _)| name);
                names.map(|name| format!("{}.{name}", layer_name(index)))
            })
            .collect()
    }

    /// Writes the weights under Hugging Face's names, without adapters and added tokens.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensors = self.weights.iter().cloned().collect();
        safetensors::save(&tensors, path)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Returns the configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Returns the settings of the adapters, if it has any.
    pub fn adapters(&self) -> Option<&LoraSettings> {
        self.adapters.as_ref()
    }

    /// Returns what is trained, with its names: all weights, or the adapters and the rows of added tokens.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// Returns the head `[vocabulary, hidden]` as it is now. Where rows of added tokens are in another type than the rest,
    /// later steps of an optimizer do not change what was returned.
    pub fn head(&self) -> Result<LmHead> {
        let own = self.head.as_ref().unwrap_or(&self.embedding);
        let added = (self.added.as_ref()).map(|rows| rows.head.as_ref().unwrap_or(&rows.embedding));
        LmHead::new(own, added.map(Var::as_tensor))
    }

    /// Returns the type in which the model computes.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// Returns the device that the model is on.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// Computes hidden states `[batch, tokens, hidden]` of whole sequences `tokens [batch, tokens]`, without a gradient: no
    /// layer's activations outlive it. Padding goes on the right, where no real token sees it.
    pub fn hidden(&self, tokens: &Tensor) -> Result<Tensor> {
        self.forward(tokens, None)
    }

    /// Computes hidden states as [`hidden`](Self::hidden) does, but differentiable and with the adapters' dropout, for which
    /// each sequence has a seed. The same seed drops out the same elements.
    pub fn hidden_in_training(&self, tokens: &Tensor, dropout_seeds: &[u64]) -> Result<Tensor> {
        self.forward(tokens, Some(dropout_seeds.into()))
    }

    fn forward(&self, tokens: &Tensor, dropout_seeds: Option<Arc<[u64]>>) -> Result<Tensor> {
        let mut x = self.embed(tokens)?;
        let trained = dropout_seeds.is_some();
        let kept = |x: Tensor| if trained { x } else { x.detach() };
        let sequences = self.sequences(tokens, 0, dropout_seeds)?;
        for layer in &self.layers {
            x = kept(layer.forward(&x, None, &sequences)?.0);
        }
        Ok(kept(self.norm.forward(&x)?))
    }

    /// Prepares a pass over `tokens [batch, tokens]`, each row behind `past` other tokens.
    fn sequences(
        &self,
        tokens: &Tensor,
        past: usize,
        dropout_seeds: Option<Arc<[u64]>>,
    ) -> candle_core::Result<Sequences> {
        let (batch, tokens) = tokens.dims2()?;
        let sizes = (batch, past, tokens);
        Sequences::new(sizes, dropout_seeds, &self.frequencies, &self.embedding)
    }

    /// Reads prompts, and returns the hidden state `[users, hidden]` of each prompt's last token and the cache. What all
    /// prompts begin with is read once. The rest is read a few prompts at a time, which are padded to the longest of these
    /// few, so neighbours should be of about the same length.
    pub fn read_prompts(&self, prompts: &[Vec<u32>]) -> Result<(Tensor, Cache)> {
        ensure!(
            !prompts.is_empty() && prompts.iter().all(|prompt| !prompt.is_empty()),
            "{} prompts, or an empty one",
            prompts.len()
        );
        let shared = shared_tokens(prompts);
        let beginning = match shared {
            0 => Vec::new(),
            _ => self.read(&[&prompts[0][..shared]], &[])?.1,
        };
        let (mut last, mut read) = (Vec::new(), Vec::new());
        for few in prompts.chunks(PROMPTS_AT_ONCE) {
            let rests: Vec<&[u32]> = few.iter().map(|prompt| &prompt[shared..]).collect();
            let (hidden, layers) = self.read(&rests, &beginning)?;
            last.push(hidden);
            read.push(layers.into_iter());
        }
        let layers = self.layers.iter().map(|_| {
            let of_users: Vec<KeysValues> = read.iter_mut().filter_map(Iterator::next).collect();
            LayerCache::new(&of_users)
        });
        let cache = Cache {
            lengths: prompts.iter().map(|prompt| prompt.len() as u32).collect(),
            shared: shared as u32,
            decoded: 0,
            layers: layers.collect::<candle_core::Result<_>>()?,
        };
        Ok((Tensor::cat(&last, 0)?, cache))
    }

    /// Reads sequences behind the keys and values of what all of them begin with. Returns the hidden states
    /// `[sequences, hidden]` of their last tokens, and each layer's keys and values. The sequences are padded to the longest
    /// on the right, where no real token sees it.
    fn read(
        &self,
        sequences: &[&[u32]],
        beginning: &[KeysValues],
    ) -> Result<(Tensor, Vec<KeysValues>)> {
        let longest = sequences
            .iter()
            .map(|tokens| tokens.len())
            .max()
            .unwrap_or(0);
        let mut tokens = Vec::with_capacity(sequences.len() * longest);
        let mut last = Vec::with_capacity(sequences.len());
        for (row, sequence) in sequences.iter().enumerate() {
            tokens.extend_from_slice(sequence);
            last.push(tokens.len() as u32 - 1);
            tokens.resize((row + 1) * longest, 0);
        }
        let device = self.device();
        let tokens = Tensor::from_vec(tokens, (sequences.len(), longest), device)?;
        let past = match beginning.first() {
            Some(layer) => layer.keys.dim(1)?,
            None => 0,
        };
        let pass = self.sequences(&tokens, past, None)?;
        let mut x = self.embed(&tokens)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let (output, seen) = layer.forward(&x, beginning.get(index), &pass)?;
            x = output.detach();
            layers.push(seen);
        }
        let x = x
            .flatten_to(1)?
            .index_select(&Tensor::new(last, device)?, 0)?;
        let x = self.norm.forward(&x.unsqueeze(1)?)?;
        Ok((x.squeeze(1)?.detach(), layers))
    }

    /// Decodes one step: reads `tokens[s]`, at least one, behind `sequences[s]`, which become so much longer. Returns the
    /// hidden states `[sequences, hidden]` of the last tokens.
    pub fn step(
        &self,
        sequences: &mut [Sequence],
        tokens: &[Vec<u32>],
        cache: &mut Cache,
    ) -> Result<Tensor> {
        ensure!(
            tokens.len() == sequences.len() && tokens.iter().all(|tokens| !tokens.is_empty()),
            "{} stretches of tokens, or an empty one, for {} sequences",
            tokens.len(),
            sequences.len()
        );
        let step = cache.append(sequences, tokens, &self.frequencies, &self.embedding)?;
        let device = self.device();
        let mut x = self.embed(&Tensor::new(tokens.concat(), device)?.unsqueeze(1)?)?;
        for (layer, cached) in self.layers.iter().zip(&mut cache.layers) {
            x = layer.decode(&x, cached, &step)?.detach();
        }
        let ends = tokens.iter().scan(0, |end, tokens| {
            *end += tokens.len() as u32;
            Some(*end - 1)
        });
        let last = Tensor::new(ends.collect::<Vec<u32>>(), device)?;
        let x = x.index_select(&last, 0)?;
        Ok(self.norm.forward(&x)?.squeeze(1)?.detach())
    }

    /// Looks up the embeddings `[batch, tokens, hidden]` of `tokens [batch, tokens]`.
    fn embed(&self, tokens: &Tensor) -> candle_core::Result<Tensor> {
        let (batch, length) = tokens.dims2()?;
        let tokens = tokens.flatten_all()?;
        let rows = match &self.added {
            None => self.embedding.index_select(&tokens, 0)?,
            Some(added) => ops::embedding(&tokens, &self.embedding, &added.embedding)?,
        };
        rows.reshape((batch, length, self.config.hidden_size))
    }
}

/// The name of the embedding in Hugging Face's models.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The name of the head in Hugging Face's models.
pub const HEAD: &str = "lm_head.weight";

/// The number of prompts that are read side by side: enough for matrix products to reach their full speed.
const PROMPTS_AT_ONCE: usize = 4;

/// Returns the length of the longest common prefix of several prompts, or 0 for a single one. The last token of a prompt is
/// never part of it, so that every prompt has a token to be read behind the prefix.
fn shared_tokens(prompts: &[Vec<u32>]) -> usize {
    let Some((first, others)) = prompts.split_first() else {
        return 0;
    };
    let shared_with = |other: &Vec<u32>| {
        let alike = first.iter().zip(other).take_while(|(a, b)| a == b).count();
        alike.min(first.len().min(other.len()).saturating_sub(1))
    };
    others.iter().map(shared_with).min().unwrap_or(0)
}

/// Tells whether two tensors hold the same numbers.
fn same(one: &Tensor, other: &Tensor) -> Result<bool> {
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32);
    let largest: f32 = (wide(one)? - wide(other)?)?.abs()?.max_all()?.to_scalar()?;
    Ok(largest == 0.0)
}

fn layer_name(layer: usize) -> String {
    format!("model.layers.{layer}")
}
