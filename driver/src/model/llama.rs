use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var, safetensors};

use super::{
    Cache, LlamaConfig, Parameters,
    attention::{Attention, Step, linear},
    cache::LayerCache,
    feed_forward::gated,
    norm::Norm,
};
use crate::random::{Purpose, random};

/// A Llama-style model: RMSNorm, rotary positions, grouped-query attention, gated feed-forward blocks, and a head that
/// is the embedding.
pub struct Llama {
    config: LlamaConfig,
    embedding: Var,
    layers: Vec<Layer>,
    norm: Norm,
    parameters: Vec<(String, Var)>,
}

struct Layer {
    attention_norm: Norm,
    attention: Attention,
    feed_forward_norm: Norm,
    gate: Var,
    up: Var,
    down: Var,
}

impl Llama {
    /// A model with random weights.
    pub fn random(config: LlamaConfig, seed: u64, dtype: DType) -> Result<Self> {
        Self::new(
            config,
            Parameters::random(random(seed, Purpose::Weights), dtype),
        )
    }

    /// The model of a `model.safetensors` with Hugging Face's tensor names.
    pub fn load(config: LlamaConfig, path: &Path) -> Result<Self> {
        Self::new(config, Parameters::load(path)?).with_context(|| path.display().to_string())
    }

    fn new(config: LlamaConfig, mut parameters: Parameters) -> Result<Self> {
        config.check()?;
        let embedding = parameters.matrix(
            "model.embed_tokens.weight",
            config.vocab_size,
            config.hidden_size,
        )?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| Layer::new(&config, &mut parameters, &format!("model.layers.{layer}")))
            .collect::<Result<_>>()?;
        let norm = Norm::new(
            parameters.scale("model.norm.weight", config.hidden_size)?,
            config.rms_norm_eps,
        );
        let parameters = parameters.finish()?;
        Ok(Self {
            config,
            embedding,
            layers,
            norm,
            parameters,
        })
    }

    /// Writes the weights under Hugging Face's names.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensors = self
            .parameters
            .iter()
            .map(|(name, weight)| (name.as_str(), weight.as_tensor().clone()))
            .collect();
        safetensors::save(&tensors, path)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The sizes.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// All weights with their names.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// The head `[vocabulary, hidden]`.
    pub fn head(&self) -> &Tensor {
        &self.embedding
    }

    /// Hidden states `[batch, tokens, hidden]` of whole sequences, differentiable. Padding goes on the right, where no
    /// real token sees it.
    pub fn hidden(&self, tokens: &Tensor) -> Result<Tensor> {
        let mut x = self.embed(tokens)?;
        for layer in &self.layers {
            x = layer.forward(&x)?.0;
        }
        Ok(self.norm.forward(&x)?)
    }

    /// Reads prompts `[users, tokens]`, padded on the right to the longest, of `lengths` real tokens: the hidden state
    /// `[users, hidden]` of each prompt's last token, and the cache with one beam for every user.
    pub fn read_prompts(&self, tokens: &Tensor, lengths: &[u32]) -> Result<(Tensor, Cache)> {
        let (users, padded) = tokens.dims2()?;
        ensure!(
            lengths.len() == users
                && lengths
                    .iter()
                    .all(|&length| (1..=padded).contains(&(length as usize))),
            "prompt lengths {lengths:?} do not fit {users} prompts of at most {padded} tokens"
        );
        let mut x = self.embed(tokens)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let (output, keys, values) = layer.forward(&x)?;
            layers.push(LayerCache::new(&keys.detach(), &values.detach())?);
            x = output.detach();
        }
        let last: Vec<u32> = (0..)
            .step_by(padded)
            .zip(lengths)
            .map(|(start, length)| start + length - 1)
            .collect();
        let x = x.reshape((users * padded, self.config.hidden_size))?;
        let x = x
            .index_select(&Tensor::new(last, &Device::Cpu)?, 0)?
            .unsqueeze(1)?;
        let cache = Cache {
            lengths: lengths.to_vec(),
            users: (0..users as u32).collect(),
            steps: 0,
            layers,
        };
        Ok((self.norm.forward(&x)?.squeeze(1)?.detach(), cache))
    }

    /// Feeds one token to every beam: their hidden states `[beams, hidden]`.
    pub fn step(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor> {
        ensure!(
            tokens.len() == cache.users.len(),
            "{} tokens for {} beams",
            tokens.len(),
            cache.users.len()
        );
        let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(1)?;
        let place = Step::of(cache);
        let mut x = self.embed(&tokens)?;
        for (layer, cached) in self.layers.iter().zip(&mut cache.layers) {
            x = layer.step(&x, cached, &place)?.detach();
        }
        cache.steps += 1;
        Ok(self.norm.forward(&x)?.squeeze(1)?.detach())
    }

    fn embed(&self, tokens: &Tensor) -> candle_core::Result<Tensor> {
        let (batch, length) = tokens.dims2()?;
        self.embedding
            .index_select(&tokens.flatten_all()?, 0)?
            .reshape((batch, length, self.config.hidden_size))
    }
}

impl Layer {
    fn new(config: &LlamaConfig, parameters: &mut Parameters, prefix: &str) -> Result<Self> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let norm = |parameters: &mut Parameters, name: &str| {
            let weight = parameters.scale(format!("{prefix}.{name}.weight"), hidden)?;
            anyhow::Ok(Norm::new(weight, config.rms_norm_eps))
        };
        Ok(Self {
            attention_norm: norm(parameters, "input_layernorm")?,
            attention: Attention::new(config, parameters, prefix)?,
            feed_forward_norm: norm(parameters, "post_attention_layernorm")?,
            gate: parameters.matrix(
                format!("{prefix}.mlp.gate_proj.weight"),
                intermediate,
                hidden,
            )?,
            up: parameters.matrix(format!("{prefix}.mlp.up_proj.weight"), intermediate, hidden)?,
            down: parameters.matrix(
                format!("{prefix}.mlp.down_proj.weight"),
                hidden,
                intermediate,
            )?,
        })
    }

    /// The layer's output for whole sequences, and its keys and values.
    fn forward(&self, x: &Tensor) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
        let (attended, keys, values) = self.attention.forward(&self.attention_norm.forward(x)?)?;
        Ok((self.feed_forward(&(x + attended)?)?, keys, values))
    }

    /// The layer's output for one new token of every beam.
    fn step(
        &self,
        x: &Tensor,
        cached: &mut LayerCache,
        place: &Step,
    ) -> candle_core::Result<Tensor> {
        let attended = self
            .attention
            .step(&self.attention_norm.forward(x)?, cached, place)?;
        self.feed_forward(&(x + attended)?)
    }

    fn feed_forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let normalised = self.feed_forward_norm.forward(x)?;
        let inner = gated(
            &linear(&normalised, &self.gate)?,
            &linear(&normalised, &self.up)?,
        )?;
        x + linear(&inner, &self.down)?
    }
}
