//! What decoding keeps of the past: the prompts once, and each beam's own tokens.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::elements::{Element, constant, elements, for_element_of};

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
        self.users = parents.iter().map(|&parent| self.users[parent as usize]).collect();
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
        Ok(Self { prompt: Tensor::stack(&[keys, values], 0)?, own: None })
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
        let op = Attend { lengths: lengths.to_vec(), users: users.to_vec() };
        queries.contiguous()?.apply_op3_no_bwd(&self.prompt, own, &op)
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
        let (_, query_heads, width) = query_layout.shape().dims3()?;
        let (_, users, tokens, heads, _) = prompt_layout.shape().dims5()?;
        let (_, beams, steps, _, _) = own_layout.shape().dims5()?;
        for_element_of!(queries, T => {
            let queries = elements::<T>(queries, query_layout)?;
            let (prompt_keys, prompt_values) = elements::<T>(prompt, prompt_layout)?.split_at(users * tokens * heads * width);
            let (own_keys, own_values) = elements::<T>(own, own_layout)?.split_at(beams * steps * heads * width);
            let mut output = vec![T::zero(); queries.len()];
            output.par_chunks_mut(query_heads * width).enumerate().for_each(|(beam, output)| {
                let user = self.users[beam] as usize;
                let prompt = user * tokens..user * tokens + self.lengths[user] as usize;
                let own = beam * steps..(beam + 1) * steps;
                let queries = &queries[beam * query_heads * width..];
                for (head, output) in output.chunks_mut(width).enumerate() {
                    let group = head / (query_heads / heads);
                    let at = |place: usize| (place * heads + group) * width;
                    let past = prompt.clone()
                        .map(|place| (&prompt_keys[at(place)..][..width], &prompt_values[at(place)..][..width]))
                        .chain(own.clone()
                            .map(|place| (&own_keys[at(place)..][..width], &own_values[at(place)..][..width])));
                    attend(&queries[head * width..][..width], past, output);
                }
            });
            Ok((candle_core::WithDType::to_cpu_storage_owned(output), query_layout.shape().clone()))
        })
    }
}

/// The softmax-weighted mean of values, over keys and values that are walked twice.
fn attend<'a, T: Element>(query: &[T], past: impl Iterator<Item = (&'a [T], &'a [T])> + Clone, output: &mut [T]) {
    let scale = constant::<T>(query.len() as f64).sqrt().recip();
    let mut weights: Vec<T> = past
        .clone()
        .map(|(key, _)| query.iter().zip(key).fold(T::zero(), |sum, (&q, &k)| sum + q * k) * scale)
        .collect();
    let largest = weights.iter().fold(T::neg_infinity(), |largest, &score| largest.max(score));
    let mut sum = T::zero();
    for weight in &mut weights {
        *weight = (*weight - largest).exp();
        sum = sum + *weight;
    }
    for (&weight, (_, value)) in weights.iter().zip(past) {
        for (output, &value) in output.iter_mut().zip(value) {
            *output = *output + weight / sum * value;
        }
    }
}
