//! Attention of new tokens over a cache, for decoding.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::{
    attention::{KeysValues, mask},
    differentiable::widen,
};

/// What one new token of a decoding step sees in a cache: its user's prompt, and tokens decoded behind that prompt.
pub struct Seen {
    /// Index of its user's prompt.
    pub user: usize,
    /// Length of that prompt, in tokens.
    pub prompt_tokens: usize,
    /// Indices of the decoded tokens that it sees, itself the last.
    pub decoded: Vec<u32>,
}

/// What all new tokens of a decoding step see, prepared once for all layers. New tokens are ordered by user, and padded
/// to the same number for each, so that those of one user share one matrix product with its prompt.
pub struct SeenTokens {
    /// The users that have new tokens `[users]`; `None` where all of the cache do.
    users: Option<Tensor>,
    /// Index of the new token in each slot `[users · slots]`; any in those that pad.
    token_of_slot: Tensor,
    /// Index of each new token's slot `[new tokens]`.
    slot_of_token: Tensor,
    /// Indices of the decoded tokens that each slot sees, padded `[users · slots · decoded]`.
    decoded: Tensor,
    /// What hides padding `[users · slots, 1, prompt + decoded]`, added to scores.
    mask: Tensor,
}

impl SeenTokens {
    /// Lays out what `tokens` see in a cache of so many `users`, whose prompts are padded to `prompt_tokens`. `like` is a
    /// tensor of the model's type and device.
    pub fn new(tokens: &[Seen], users: usize, prompt_tokens: usize, like: &Tensor) -> Result<Self> {
        let mut of_users: Vec<Vec<usize>> = vec![Vec::new(); users];
        for (token, seen) in tokens.iter().enumerate() {
            of_users[seen.user].push(token);
        }
        let present: Vec<u32> = (0..users as u32)
            .filter(|&user| !of_users[user as usize].is_empty())
            .collect();
        let slots = of_users.iter().map(Vec::len).max().unwrap_or(0);
        let (mut token_of_slot, mut slot_of_token) = (Vec::new(), vec![0u32; tokens.len()]);
        for of_user in of_users.iter().filter(|of_user| !of_user.is_empty()) {
            for slot in 0..slots {
                if let Some(&token) = of_user.get(slot) {
                    slot_of_token[token] = token_of_slot.len() as u32;
                }
                token_of_slot.push(*of_user.get(slot).unwrap_or(&of_user[0]) as u32);
            }
        }
        let in_slots = || token_of_slot.iter().map(|&token| &tokens[token as usize]);
        let most_decoded = (tokens.iter().map(|seen| seen.decoded.len()))
            .max()
            .unwrap_or(0);
        let decoded: Vec<u32> = in_slots()
            .flat_map(|seen| {
                let padding = std::iter::repeat_n(0, most_decoded - seen.decoded.len());
                seen.decoded.iter().copied().chain(padding)
            })
            .collect();
        let sees = in_slots().flat_map(|seen| {
            let prompt = (0..prompt_tokens).map(|token| token < seen.prompt_tokens);
            prompt.chain((0..most_decoded).map(|token| token < seen.decoded.len()))
        });
        let shape = (token_of_slot.len(), 1, prompt_tokens + most_decoded);
        let device = like.device();
        Ok(Self {
            mask: mask(sees, shape, like)?,
            users: match present.len() == users {
                true => None,
                false => Some(Tensor::new(present, device)?),
            },
            token_of_slot: Tensor::new(token_of_slot, device)?,
            slot_of_token: Tensor::new(slot_of_token, device)?,
            decoded: Tensor::new(decoded, device)?,
        })
    }

    /// Returns the prompts `[users, key heads, tokens, head width]` of the users that have new tokens.
    fn of_users(&self, prompts: &Tensor) -> Result<Tensor> {
        match &self.users {
            Some(users) => prompts.index_select(users, 0),
            None => Ok(prompts.clone()),
        }
    }

    /// Returns what each slot sees `[users · slots, key heads, decoded, head width]` of all decoded tokens
    /// `[decoded, key heads, head width]`.
    fn of_slots(&self, decoded: &Tensor) -> Result<Tensor> {
        let (_, heads, width) = decoded.dims3()?;
        let slots = self.token_of_slot.elem_count();
        let seen = decoded.index_select(&self.decoded, 0)?;
        let seen = seen.reshape((slots, (), heads, width))?;
        seen.transpose(1, 2)?.contiguous()
    }
}

/// Computes attention of the new tokens of a decoding step, `queries [new tokens, heads, head width]`, over cached
/// prompts `[users, key heads, prompt tokens, head width]` and decoded tokens `[decoded, key heads, head width]`.
pub fn cached_attention(
    queries: &Tensor,
    prompts: &KeysValues,
    decoded: &KeysValues,
    seen: &SeenTokens,
) -> Result<Tensor> {
    let (_, heads, width) = queries.dims3()?;
    let prompt_keys = seen.of_users(&prompts.keys)?;
    let (users, key_heads, prompt_tokens, _) = prompt_keys.dims4()?;
    let queries = (queries.detach() * (width as f64).sqrt().recip())?;
    let queries = queries.index_select(&seen.token_of_slot, 0)?;
    let slots = queries.dim(0)?;
    let group = heads / key_heads;
    // `[users · slots, key heads, group, ..]` and `[users, key heads, slots · group, ..]`, the latter a matrix for each
    // prompt.
    let by_user = |x: &Tensor| {
        let last = x.dim(D::Minus1)?;
        let x = x.reshape((users, slots / users, key_heads, group * last))?;
        let x = x.transpose(1, 2)?.contiguous()?;
        x.reshape((users, key_heads, (), last))
    };
    let by_slot = |x: &Tensor| {
        let last = x.dim(D::Minus1)?;
        let x = x.reshape((users, key_heads, slots / users, group * last))?;
        let x = x.transpose(1, 2)?.contiguous()?;
        x.reshape((slots, key_heads, group, last))
    };
    let queries = queries.reshape((slots, key_heads, group, width))?;
    let prompt_scores = by_slot(&by_user(&queries)?.matmul(&prompt_keys.t()?)?)?;
    // The part of the decoded tokens is small enough to be computed in the type of sums.
    let decoded_keys = widen(&seen.of_slots(&decoded.keys)?)?;
    let decoded_scores = widen(&queries)?.matmul(&decoded_keys.t()?)?;
    let scores = Tensor::cat(&[widen(&prompt_scores)?, decoded_scores], D::Minus1)?;
    let scores = scores
        .reshape((slots, heads, ()))?
        .broadcast_add(&seen.mask)?;
    let weights = softmax_last_dim(&scores)?;
    let weights = weights.reshape((slots, key_heads, group, ()))?;
    let decoded_tokens = weights.dim(D::Minus1)? - prompt_tokens;
    let of_prompt = weights.narrow(D::Minus1, 0, prompt_tokens)?;
    let of_prompt = by_user(&of_prompt.to_dtype(queries.dtype())?.contiguous()?)?;
    let of_decoded = weights.narrow(D::Minus1, prompt_tokens, decoded_tokens)?;
    let from_prompt = by_slot(&of_prompt.matmul(&seen.of_users(&prompts.values)?)?)?;
    let decoded_values = widen(&seen.of_slots(&decoded.values)?)?;
    let from_decoded = of_decoded.contiguous()?.matmul(&decoded_values)?;
    let mixed = (widen(&from_prompt)? + from_decoded)?.to_dtype(queries.dtype())?;
    mixed
        .reshape((slots, heads, width))?
        .index_select(&seen.slot_of_token, 0)
}
