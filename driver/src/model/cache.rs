//! What decoding keeps of the past: every prompt once, and the tokens that were fed behind them.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    attention::KeysValues,
    composed,
    elements::{Element, constant, dot, elements, for_element_of, largest},
    matrix::{Matrix, multiply},
    pass::Pass,
};

/// Keys and values of all layers while responses are decoded. Tokens are only ever added, so that any sequence that
/// was read can be continued at any time, by several others too.
pub struct Cache {
    /// Real tokens of each prompt.
    pub(super) lengths: Vec<u32>,
    /// Tokens that all prompts begin with, which were read once.
    pub(super) shared: u32,
    /// Tokens fed behind the prompts so far.
    pub(super) fed: u32,
    pub(super) layers: Vec<LayerCache>,
}

/// A sequence that was read: a user's prompt, and tokens behind it.
#[derive(Clone, Debug)]
pub struct Sequence {
    user: u32,
    /// Which of the cache's fed tokens are its own, in their order.
    own: Vec<u32>,
}

impl Cache {
    /// The prompts alone, one sequence a user.
    pub fn prompts(&self) -> Vec<Sequence> {
        (0..self.lengths.len() as u32)
            .map(|user| Sequence {
                user,
                own: Vec::new(),
            })
            .collect()
    }

    /// Tokens that were read of the prompts.
    pub fn prompt_tokens(&self) -> usize {
        let own = |&length: &u32| (length - self.shared) as usize;
        self.shared as usize + self.lengths.iter().map(own).sum::<usize>()
    }

    /// Tokens of the longest prompt, to which the others are padded.
    pub(super) fn padded(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::padded)
    }

    /// Feeds tokens behind sequences, which become so much longer.
    pub(super) fn feed(&mut self, sequences: &mut [Sequence], tokens: &[Vec<u32>]) -> Feed {
        let mut feed = Feed::default();
        for (sequence, tokens) in sequences.iter_mut().zip(tokens) {
            let prompt = self.lengths[sequence.user as usize];
            for _ in tokens {
                feed.positions.push(prompt + sequence.own.len() as u32);
                sequence.own.push(self.fed);
                feed.seen.push(Seen {
                    user: sequence.user as usize,
                    prompt: prompt as usize,
                    own: sequence.own.clone(),
                });
                self.fed += 1;
            }
        }
        feed
    }
}

/// The tokens of one decoding step, sequence after sequence.
#[derive(Default)]
pub(super) struct Feed {
    /// The position of each.
    pub positions: Vec<u32>,
    seen: Vec<Seen>,
    /// Where the device finds what each sees, in the composed form.
    places: Option<Places>,
}

/// What each of some tokens sees, as places in a layer's cache, made the same number for all.
struct Places {
    /// Its user `[tokens]`.
    users: Tensor,
    /// Fed tokens `[tokens · most of any]`.
    own: Tensor,
}

impl Places {
    /// Keys or values `[tokens, seen, heads, width]`, from those of the prompts `[users, tokens, heads, width]` and of
    /// all fed tokens `[1, fed tokens, heads, width]`.
    fn side_by_side(&self, prompts: &Tensor, fed: &Tensor) -> Result<Tensor> {
        let (_, _, heads, width) = prompts.dims4()?;
        let own = fed.squeeze(0)?.index_select(&self.own, 0)?;
        let own = own.reshape((self.users.elem_count(), (), heads, width))?;
        Tensor::cat(&[prompts.index_select(&self.users, 0)?, own], 1)
    }
}

impl Feed {
    /// Finds the places of what each token sees, behind prompts padded to `padded` tokens, and the mask
    /// `[tokens, 1, 1, seen]` that hides the padding. `like` is of the model's type and device.
    pub fn place(&mut self, padded: usize, like: &Tensor) -> Result<Tensor> {
        let most = self
            .seen
            .iter()
            .map(|seen| seen.own.len())
            .max()
            .unwrap_or(0);
        let device = like.device();
        let users: Vec<u32> = self.seen.iter().map(|seen| seen.user as u32).collect();
        let own = |seen: &Seen| {
            let mut own = seen.own.clone();
            own.resize(most, 0);
            own
        };
        let own: Vec<u32> = self.seen.iter().flat_map(own).collect();
        self.places = Some(Places {
            users: Tensor::new(users, device)?,
            own: Tensor::new(own, device)?,
        });
        let seen = self.seen.iter().flat_map(|seen| {
            let prompt = (0..padded).map(|token| token < seen.prompt);
            prompt.chain((0..most).map(|token| token < seen.own.len()))
        });
        composed::attention::mask(seen, (self.seen.len(), 1, 1, padded + most), like)
    }
}

/// What one token sees.
#[derive(Clone)]
struct Seen {
    user: usize,
    /// Tokens of its user's prompt.
    prompt: usize,
    /// Fed tokens, itself the last.
    own: Vec<u32>,
}

/// Keys and values of one layer, stacked in that order.
pub(super) struct LayerCache {
    /// `[2, users, tokens, heads, width]`.
    prompts: Tensor,
    /// `[2, 1, room for fed tokens, heads, width]`; nothing before the first step.
    fed: Option<Tensor>,
    /// Fed tokens so far.
    fed_tokens: usize,
}

impl LayerCache {
    /// Keeps the keys and values of the prompts, which come a few users at a time: the shorter ones are padded.
    pub fn new(of_users: &[KeysValues]) -> Result<Self> {
        let longest = of_users.iter().map(KeysValues::tokens).max().unwrap_or(0);
        let padded = |few: &KeysValues| {
            Tensor::stack(&[&few.keys, &few.values], 0)?.pad_with_zeros(
                2,
                0,
                longest - few.tokens(),
            )
        };
        let prompts = of_users.iter().map(padded).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            prompts: Tensor::cat(&prompts, 1)?.detach(),
            fed: None,
            fed_tokens: 0,
        })
    }

    fn padded(&self) -> usize {
        self.prompts.dims()[2]
    }

    /// Adds the keys and values `[tokens, 1, heads, width]` of tokens that are fed.
    pub fn push(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        let new = Tensor::stack(&[keys.transpose(0, 1)?, values.transpose(0, 1)?], 0)?;
        let (before, after) = (self.fed_tokens, self.fed_tokens + new.dim(2)?);
        let fed = match self.fed.take() {
            Some(fed) if after <= fed.dim(2)? => fed,
            full => {
                // Twice what is needed: each token is then moved about once, however many follow.
                let (_, _, _, heads, width) = new.dims5()?;
                let shape = (2, 1, 2 * after, heads, width);
                let larger = Tensor::zeros(shape, new.dtype(), new.device())?;
                if let Some(full) = full {
                    larger.slice_set(&full, 2, 0)?;
                }
                larger
            }
        };
        fed.slice_set(&new, 2, before)?;
        (self.fed, self.fed_tokens) = (Some(fed), after);
        Ok(())
    }

    /// What the queries `[tokens, 1, heads, width]` of the newest tokens see.
    pub fn attend(&self, queries: &Tensor, feed: &Feed, pass: &Pass) -> Result<Tensor> {
        let Some(fed) = &self.fed else {
            candle_core::bail!("a token attends before it is cached");
        };
        if let (Some(mask), Some(places)) = (&pass.mask, &feed.places) {
            let keys = places.side_by_side(&self.prompts.get(0)?, &fed.get(0)?)?;
            let values = places.side_by_side(&self.prompts.get(1)?, &fed.get(1)?)?;
            return composed::attention::attention(queries, &keys, &values, mask);
        }
        let op = Attend {
            seen: feed.seen.clone(),
        };
        queries
            .squeeze(1)?
            .contiguous()?
            .apply_op3_no_bwd(&self.prompts, fed, &op)
    }
}

struct Attend {
    seen: Vec<Seen>,
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attend-to-cache"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        query_layout: &Layout,
        prompts: &CpuStorage,
        prompts_layout: &Layout,
        fed: &CpuStorage,
        fed_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_element_of!(queries, T => {
            let prompts = Past::<T>::new(elements(prompts, prompts_layout)?, prompts_layout)?;
            let fed = Past::new(elements(fed, fed_layout)?, fed_layout)?;
            let output = self.mixed(elements(queries, query_layout)?, query_layout, &prompts, &fed)?;
            Ok((candle_core::WithDType::to_cpu_storage_owned(output), query_layout.shape().clone()))
        })
    }
}

impl Attend {
    /// User by user: all tokens of a user see the same prompt, which makes two matrix products a head.
    fn mixed<T: Element>(
        &self,
        queries: &[T],
        layout: &Layout,
        prompts: &Past<T>,
        fed: &Past<T>,
    ) -> Result<Vec<T>> {
        let (_, heads, width) = layout.shape().dims3()?;
        let mut output = vec![T::zero(); queries.len()];
        let mut rest = (queries, &mut output[..]);
        let of_users: Vec<_> = self
            .seen
            .chunk_by(|a, b| a.user == b.user)
            .map(|seen| {
                let (queries, later_queries) = rest.0.split_at(seen.len() * heads * width);
                let (output, later) = std::mem::take(&mut rest.1).split_at_mut(queries.len());
                rest = (later_queries, later);
                (seen, queries, output)
            })
            .collect();
        of_users
            .into_par_iter()
            .for_each(|(seen, queries, output)| {
                for head in 0..heads {
                    let tokens = Tokens {
                        seen,
                        heads,
                        width,
                        head,
                    };
                    tokens.attend(queries, prompts, fed, output);
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

    /// The first `length` tokens of an owner: one head's part of `values`.
    fn matrix(&self, values: &'a [T], owner: usize, length: usize, head: usize) -> Matrix<'a, T> {
        let start = (owner * self.tokens * self.heads + head) * self.width;
        let stride = self.heads * self.width;
        Matrix::strided(&values[start..], length, self.width, stride)
    }

    fn row(&self, values: &'a [T], token: u32, head: usize) -> &'a [T] {
        let start = (token as usize * self.heads + head) * self.width;
        &values[start..start + self.width]
    }
}

/// One query head of one user's tokens.
struct Tokens<'a> {
    seen: &'a [Seen],
    heads: usize,
    width: usize,
    head: usize,
}

impl Tokens<'_> {
    fn attend<T: Element>(
        &self,
        queries: &[T],
        prompts: &Past<T>,
        fed: &Past<T>,
        output: &mut [T],
    ) {
        let Some(&Seen { user, prompt, .. }) = self.seen.first() else {
            return;
        };
        let (start, stride) = (self.head * self.width, self.heads * self.width);
        let key_head = self.head / (self.heads / prompts.heads);
        let scale = constant::<T>(self.width as f64).sqrt().recip();
        let matrix = Matrix::strided(&queries[start..], self.seen.len(), self.width, stride);
        let mut weights = vec![T::zero(); self.seen.len() * prompt];
        let keys = prompts.matrix(prompts.keys, user, prompt, key_head);
        multiply(&mut weights, prompt, T::zero(), matrix, keys.t(), scale);
        let own_weights: Vec<Vec<T>> = (self.seen.iter())
            .zip(queries[start..].chunks(stride))
            .zip(weights.chunks_mut(prompt.max(1)))
            .map(|((seen, query), weights)| {
                let key =
                    |&token: &u32| dot(&query[..self.width], fed.row(fed.keys, token, key_head));
                let mut own: Vec<T> = seen.own.iter().map(|token| key(token) * scale).collect();
                softmax(weights, &mut own);
                own
            })
            .collect();
        let values = prompts.matrix(prompts.values, user, prompt, key_head);
        let weights = Matrix::new(&weights, prompt);
        multiply(
            &mut output[start..],
            stride,
            T::zero(),
            weights,
            values,
            T::one(),
        );
        for ((seen, own), output) in
            (self.seen.iter().zip(own_weights)).zip(output[start..].chunks_mut(stride))
        {
            for (&token, weight) in seen.own.iter().zip(own) {
                for (output, &value) in output.iter_mut().zip(fed.row(fed.values, token, key_head))
                {
                    *output += weight * value;
                }
            }
        }
    }
}

/// The softmax over two stretches of scores together.
fn softmax<T: Element>(a: &mut [T], b: &mut [T]) {
    let largest = largest(&[largest(a), largest(b)]);
    let mut sum = T::zero();
    for weight in a.iter_mut().chain(b.iter_mut()) {
        *weight = (*weight - largest).exponential();
        sum += *weight;
    }
    for weight in a.iter_mut().chain(b.iter_mut()) {
        *weight /= sum;
    }
}
