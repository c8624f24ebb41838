//! What decoding keeps of the past: the prompts once, and each beam's own tokens.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::elements::{Element, constant, elements, for_element_of, largest};

/// Keys and values of all layers while responses are decoded. All beams of a user share the prompt's.
pub struct Cache {
    /// Real tokens of each prompt.
    pub(super) lengths: Vec<u32>,
    /// The user of each beam.
    pub(super) users: Vec<u32>,
    /// Beams' own tokens so far.
    pub(super) steps: u32,
    pub(super) layers: Vec<LayerCache>,
}

/// Keys and values of one layer, stacked in that order.
pub(super) struct LayerCache {
    /// `[2, users, tokens, heads, width]`.
    prompt: Tensor,
    /// `[2, beams, steps, heads, width]`; nothing before the first step.
    own: Option<Tensor>,
}

impl Cache {
    /// Makes beam `i` continue what beam `parents[i]` was.
    pub fn continue_from(&mut self, parents: &[u32]) -> Result<()> {
        self.users = parents
            .iter()
            .map(|&parent| self.users[parent as usize])
            .collect();
        for layer in &mut self.layers {
            if let Some(own) = &layer.own {
                let parents = Tensor::new(parents, own.device())?;
                layer.own = Some(own.index_select(&parents, 1)?);
            }
        }
        Ok(())
    }

    /// The position that each beam's next token takes.
    pub(super) fn next_positions(&self) -> Vec<u32> {
        self.users
            .iter()
            .map(|&user| self.lengths[user as usize] + self.steps)
            .collect()
    }
}

impl LayerCache {
    /// Keeps the keys and values `[users, tokens, heads, width]` of the prompts.
    pub fn new(keys: &Tensor, values: &Tensor) -> Result<Self> {
        Ok(Self {
            prompt: Tensor::stack(&[keys, values], 0)?,
            own: None,
        })
    }

    /// Adds one token's keys and values `[beams, 1, heads, width]` to every beam.
    pub fn push(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        let new = Tensor::stack(&[keys, values], 0)?;
        self.own = Some(match &self.own {
            Some(own) => Tensor::cat(&[own, &new], 2)?,
            None => new,
        });
        Ok(())
    }

    /// What the queries `[beams, heads, width]` of the newest tokens see: their user's prompt and their own tokens.
    pub fn attend(&self, queries: &Tensor, lengths: &[u32], users: &[u32]) -> Result<Tensor> {
        let Some(own) = &self.own else {
            candle_core::bail!("a beam attends before its first token is cached");
        };
        let op = Attend {
            lengths: lengths.to_vec(),
            users: users.to_vec(),
        };
        queries
            .contiguous()?
            .apply_op3_no_bwd(&self.prompt, own, &op)
    }
}

struct Attend {
    lengths: Vec<u32>,
    users: Vec<u32>,
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attend-to-cache"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        query_layout: &Layout,
        prompt: &CpuStorage,
        prompt_layout: &Layout,
        own: &CpuStorage,
        own_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_element_of!(queries, T => {
            let prompt = Past::<T>::new(elements(prompt, prompt_layout)?, prompt_layout)?;
            let own = Past::new(elements(own, own_layout)?, own_layout)?;
            let output = self.mixed(elements(queries, query_layout)?, query_layout, &prompt, &own)?;
            Ok((candle_core::WithDType::to_cpu_storage_owned(output), query_layout.shape().clone()))
        })
    }
}

impl Attend {
    fn mixed<T: Element>(
        &self,
        queries: &[T],
        layout: &Layout,
        prompt: &Past<T>,
        own: &Past<T>,
    ) -> Result<Vec<T>> {
        let (_, heads, width) = layout.shape().dims3()?;
        let group = heads / prompt.heads;
        let mut output = vec![T::zero(); queries.len()];
        let beams = output
            .par_chunks_mut(heads * width)
            .zip(queries.par_chunks(heads * width));
        beams
            .zip(&self.users)
            .enumerate()
            .for_each(|(beam, ((output, queries), &user))| {
                let length = self.lengths[user as usize] as usize;
                for (head, (output, query)) in output
                    .chunks_mut(width)
                    .zip(queries.chunks(width))
                    .enumerate()
                {
                    let seen = prompt.of(user as usize, length, head / group);
                    attend(
                        query,
                        seen.chain(own.of(beam, own.tokens, head / group)),
                        output,
                    );
                }
            });
        Ok(output)
    }
}

/// Keys and values `[owners, tokens, heads, width]`.
struct Past<'a, T> {
    keys: &'a [T],
    values: &'a [T],
    tokens: usize,
    heads: usize,
    width: usize,
}

impl<'a, T: Element> Past<'a, T> {
    fn new(stacked: &'a [T], layout: &Layout) -> Result<Self> {
        let (_, _, tokens, heads, width) = layout.shape().dims5()?;
        let (keys, values) = stacked.split_at(stacked.len() / 2);
        Ok(Self {
            keys,
            values,
            tokens,
            heads,
            width,
        })
    }

    /// Keys and values of one head for the first `length` tokens of an owner.
    fn of(
        &self,
        owner: usize,
        length: usize,
        head: usize,
    ) -> impl Iterator<Item = (&'a [T], &'a [T])> + Clone {
        let (keys, values, heads, width) = (self.keys, self.values, self.heads, self.width);
        let first = owner * self.tokens;
        (first..first + length).map(move |token| {
            let start = (token * heads + head) * width;
            (&keys[start..start + width], &values[start..start + width])
        })
    }
}

/// The softmax-weighted mean of values, over keys and values that are walked twice.
fn attend<'a, T: Element>(
    query: &[T],
    past: impl Iterator<Item = (&'a [T], &'a [T])> + Clone,
    output: &mut [T],
) {
    let scale = constant::<T>(query.len() as f64).sqrt().recip();
    let mut weights: Vec<T> = past
        .clone()
        .map(|(key, _)| {
            query
                .iter()
                .zip(key)
                .fold(T::zero(), |sum, (&q, &k)| sum + q * k)
                * scale
        })
        .collect();
    let largest = largest(&weights);
    let mut sum = T::zero();
    for weight in &mut weights {
        *weight = (*weight - largest).exponential();
        sum += *weight;
    }
    for (&weight, (_, value)) in weights.iter().zip(past) {
        for (output, &value) in output.iter_mut().zip(value) {
            *output += weight / sum * value;
        }
    }
}
