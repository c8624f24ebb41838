//! Keys and values that decoding keeps: those of every prompt once, and those of the tokens decoded behind them.

use candle_core::{Result, Tensor};

use super::forward::Decoding;
use crate::ops::{KeysValues, RotaryAngles, Seen, SeenTokens, cached_attention};

/// The cache of all layers. Tokens are only ever added, so any sequence that was read can be continued at any time, also
/// by several others.
pub struct Cache {
    /// Real tokens of each prompt.
    pub(super) lengths: Vec<u32>,
    /// Tokens that all prompts begin with, which were read once.
    pub(super) shared: u32,
    /// Tokens decoded behind the prompts so far.
    pub(super) decoded: u32,
    pub(super) layers: Vec<LayerCache>,
}

/// A sequence that was read: a user's prompt, and tokens behind it.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Index of the prompt.
    user: u32,
    /// Indices of its own tokens among all that were decoded, in their order.
    decoded: Vec<u32>,
}

impl Cache {
    /// Returns the prompts alone, one sequence a user.
    pub fn prompts(&self) -> Vec<Sequence> {
        (0..self.lengths.len() as u32)
            .map(|user| Sequence {
                user,
                decoded: Vec::new(),
            })
            .collect()
    }

    /// Returns how many tokens of the prompts the model read.
    pub fn prompt_tokens(&self) -> usize {
        let own = |&length: &u32| (length - self.shared) as usize;
        self.shared as usize + self.lengths.iter().map(own).sum::<usize>()
    }

    /// Prepares the decoding of `tokens[s]` behind `sequences[s]`, which become so much longer. `frequencies` are those of
    /// the rotary embedding; `like` is a tensor of the model's type and device.
    pub(super) fn append(
        &mut self,
        sequences: &mut [Sequence],
        tokens: &[Vec<u32>],
        frequencies: &[f64],
        like: &Tensor,
    ) -> Result<Decoding> {
        let (mut positions, mut seen) = (Vec::new(), Vec::new());
        for (sequence, tokens) in sequences.iter_mut().zip(tokens) {
            let prompt = self.lengths[sequence.user as usize];
            for _ in tokens {
                positions.push(prompt + sequence.decoded.len() as u32);
                sequence.decoded.push(self.decoded);
                seen.push(Seen {
                    user: sequence.user as usize,
                    prompt_tokens: prompt as usize,
                    decoded: sequence.decoded.clone(),
                });
                self.decoded += 1;
            }
        }
        let longest_prompt = self
            .lengths
            .iter()
            .max()
            .map_or(0, |&longest| longest as usize);
        Ok(Decoding {
            angles: RotaryAngles::new(&positions, 1, frequencies, like)?,
            seen: SeenTokens::new(&seen, self.lengths.len(), longest_prompt, like)?,
        })
    }
}

/// The cache of one layer.
pub struct LayerCache {
    /// Of the prompts `[users, key heads, longest prompt, head width]`.
    prompts: KeysValues,
    /// Of the decoded tokens, with room for more `[room, key heads, head width]`; `None` before the first step.
    decoded: Option<KeysValues>,
    /// Tokens decoded so far.
    tokens: usize,
}

impl LayerCache {
    /// Keeps the keys and values `[users, tokens, key heads, head width]` of the prompts, which come a few users at a time.
    /// Shorter prompts are padded.
    pub fn new(of_users: &[KeysValues]) -> Result<Self> {
        let join = |part: fn(&KeysValues) -> &Tensor| {
            let tokens = of_users.iter().map(|few| part(few).dim(1));
            let longest = tokens
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .max()
                .unwrap_or(0);
            let padded = of_users.iter().map(|few| {
                let few = part(few).detach().transpose(1, 2)?;
                few.pad_with_zeros(2, 0, longest - few.dim(2)?)
            });
            Tensor::cat(&padded.collect::<Result<Vec<_>>>()?, 0)?.contiguous()
        };
        Ok(Self {
            prompts: KeysValues {
                keys: join(|few| &few.keys)?,
                values: join(|few| &few.values)?,
            },
            decoded: None,
            tokens: 0,
        })
    }

    /// Adds the keys and values `[new tokens, key heads, head width]` of new tokens, and computes what their queries
    /// `[new tokens, heads, head width]` see.
    pub fn attend(
        &mut self,
        queries: &Tensor,
        new: KeysValues,
        seen: &SeenTokens,
    ) -> Result<Tensor> {
        let [keys, values] = match self.decoded.take() {
            Some(decoded) => [Some(decoded.keys), Some(decoded.values)],
            None => [None, None],
        };
        let decoded = KeysValues {
            keys: self.push(keys, &new.keys)?,
            values: self.push(values, &new.values)?,
        };
        self.tokens += new.keys.dim(0)?;
        let mixed = cached_attention(queries, &self.prompts, &decoded, seen);
        self.decoded = Some(decoded);
        mixed
    }

    /// Writes new rows behind those that are there, and returns all with room for more.
    fn push(&self, rows: Option<Tensor>, new: &Tensor) -> Result<Tensor> {
        let after = self.tokens + new.dim(0)?;
        let rows = match rows {
            Some(rows) if after <= rows.dim(0)? => rows,
            full => {
                // Twice what is needed: each row is then moved about once, however many follow.
                let (_, heads, width) = new.dims3()?;
                let larger = Tensor::zeros((2 * after, heads, width), new.dtype(), new.device())?;
                if let Some(full) = full {
                    larger.slice_set(&full, 0, 0)?;
                }
                larger
            }
        };
        rows.slice_set(&new.detach().contiguous()?, 0, self.tokens)?;
        Ok(rows)
    }
}
