//! Tokens that are added to a frozen model. Their rows of the embedding and of the head are trained beside its adapters,
//! and the rows of its own tokens stay as they are.

use std::ops::Range;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};

use super::{EMBEDDING, HEAD, Llama};
use crate::{
    model::parameters::{cast, values},
    ops::accumulator_dtype,
};

/// PEFT's name for the trained rows of a module.
pub const TRAINED_ROWS: &str = "token_adapter.trainable_tokens_delta";

/// Rows of the embedding that are summed at once, and texts that are averaged at once. In another type than the weights'
/// they take memory of their own.
const AT_ONCE: usize = 4_096;

/// The rows of added tokens.
pub struct AddedRows<T> {
    /// `[added tokens, hidden]`.
    pub embedding: T,
    /// `[added tokens, hidden]`; `None` where the embedding is the head.
    pub head: Option<T>,
}

/// A text that added tokens stand for.
pub struct NamedText {
    /// The text in the model's own tokens.
    pub text: Vec<u32>,
    /// Those that stand for it, by their numbers among the added tokens.
    pub added: Vec<u32>,
}

impl Llama {
    /// Adds tokens to a model with adapters, from `tokens.start` on. Their rows are trained in f32, as the adapters are.
    /// Rows that the model has from there on, which no token of its tokenizer has used, are dropped.
    pub fn add_tokens(&mut self, tokens: Range<usize>, rows: AddedRows<Tensor>) -> Result<()> {
        ensure!(
            self.adapters.is_some() && self.added.is_none(),
            "tokens are added once, to a frozen model with adapters"
        );
        let own = self.own_rows(tokens.start)?;
        ensure!(
            own.head.is_some() == rows.head.is_some(),
            "added tokens need rows of the head where it is not the embedding, and nowhere else"
        );
        let hidden = self.config.hidden_size;
        let variable = |rows: Tensor| {
            ensure!(
                !tokens.is_empty() && rows.dims() == [tokens.len(), hidden],
                "the rows of {} added tokens have the shape {:?}, expected [{}, {hidden}]",
                tokens.len(),
                rows.dims(),
                tokens.len()
            );
            let dtype = accumulator_dtype(self.embedding.dtype());
            let rows = rows.to_device(self.embedding.device())?.to_dtype(dtype)?;
            Ok(Var::from_tensor(&rows)?)
        };
        let added = AddedRows {
            embedding: variable(rows.embedding)?,
            head: rows.head.map(variable).transpose()?,
        };
        let weights = [
            (EMBEDDING, Some(&added.embedding)),
            (HEAD, added.head.as_ref()),
        ];
        for (weight, rows) in weights {
            let rows = rows.map(|rows| (trained_rows_of(weight), rows.clone()));
            self.parameters.extend(rows);
        }
        self.embedding = own.embedding;
        self.head = own.head;
        self.added = Some(added);
        self.config.vocab_size = tokens.end;
        Ok(())
    }

    /// Returns the tokens that were added to the model's own.
    pub fn added_tokens(&self) -> Option<Range<usize>> {
        self.added.as_ref()?;
        let own = self.embedding.dims().first().copied().unwrap_or(0);
        Some(own..self.config.vocab_size)
    }

    /// Returns the frozen rows of the model's first `tokens`.
    pub fn own_rows(&self, tokens: usize) -> Result<AddedRows<Tensor>> {
        let rows = self.embedding.dim(0)?;
        ensure!(
            (1..=rows).contains(&tokens),
            "tokens are added from {tokens} on, and the model has {rows}: expected the first of them in 1 to {rows}"
        );
        let first = |weight: &Tensor| weight.detach().narrow(0, 0, tokens);
        Ok(AddedRows {
            embedding: first(&self.embedding)?,
            head: self.head.as_ref().map(first).transpose()?,
        })
    }

    /// Computes rows for tokens that are to be added. The row of a token is the mean over the texts that it stands for, each
    /// of which counts with the mean row of its tokens, or the mean of all rows before it where there is no such text.
    pub fn initial_rows(
        &self,
        tokens: Range<usize>,
        texts: &[NamedText],
    ) -> Result<AddedRows<Tensor>> {
        let own = self.own_rows(tokens.start)?;
        let means = |weight: Tensor| means(&weight, tokens.len(), texts);
        Ok(AddedRows {
            embedding: means(own.embedding)?,
            head: own.head.map(means).transpose()?,
        })
    }

    /// Returns a weight with the rows of added tokens behind its own, in the type of these.
    pub(super) fn with_added_rows(&self, name: &str, weight: &Tensor) -> Result<Tensor> {
        let rows = self.added.as_ref().and_then(|added| match name {
            EMBEDDING => Some(&added.embedding),
            HEAD => added.head.as_ref(),
            _ => None,
        });
        let Some(rows) = rows else {
            return Ok(weight.clone());
        };
        let own = weight.narrow(0, 0, self.embedding.dim(0)?)?;
        let rows = cast(name, &rows.detach(), weight.dtype())?;
        Ok(Tensor::cat(&[own, rows], 0)?)
    }
}

/// Returns PEFT's name for the trained rows of a weight.
pub fn trained_rows_of(weight: &str) -> String {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    format!("{module}.{TRAINED_ROWS}")
}

/// Computes the rows of `count` tokens that stand for texts, from the rows `[tokens, hidden]` of the texts' tokens.
fn means(weight: &Tensor, count: usize, texts: &[NamedText]) -> Result<Tensor> {
    let hidden = weight.dim(1)?;
    let mut sums = values("the rows of added tokens", &[count, hidden], || 0.0)?;
    let mut texts_of = vec![0u32; count];
    for texts in texts.chunks(AT_ONCE) {
        let tokens: Vec<u32> = texts.iter().flat_map(|text| &text.text).copied().collect();
        if tokens.is_empty() {
            continue;
        }
        let tokens = Tensor::new(tokens, weight.device())?;
        let rows = weight.index_select(&tokens, 0)?.to_dtype(DType::F32)?;
        let rows: Vec<f32> = rows.flatten_all()?.to_vec1()?;
        let mut rows = rows.chunks_exact(hidden);
        for NamedText { text, added } in texts.iter().filter(|text| !text.text.is_empty()) {
            let mut mean = vec![0.0; hidden];
            for row in rows.by_ref().take(text.len()) {
                let share = 1.0 / text.len() as f64;
                mean.iter_mut()
                    .zip(row)
                    .for_each(|(mean, &value)| *mean += f64::from(value) * share);
            }
            for &token in added {
                texts_of[token as usize] += 1;
                let sum = &mut sums[token as usize * hidden..][..hidden];
                sum.iter_mut()
                    .zip(&mean)
                    .for_each(|(sum, value)| *sum += value);
            }
        }
    }
    let mean_of_all = mean(weight)?;
    for (row, &texts) in sums.chunks_exact_mut(hidden).zip(&texts_of) {
        match texts {
            0 => row.copy_from_slice(&mean_of_all),
            texts => row.iter_mut().for_each(|sum| *sum /= f64::from(texts)),
        }
    }
    Ok(Tensor::from_vec(sums, (count, hidden), &Device::Cpu)?)
}

/// Computes the mean row of a matrix.
fn mean(weight: &Tensor) -> Result<Vec<f64>> {
    let (rows, hidden) = weight.dims2()?;
    let mut sums = vec![0.0; hidden];
    for first in (0..rows).step_by(AT_ONCE) {
        let part = weight.narrow(0, first, AT_ONCE.min(rows - first))?;
        let part: Vec<f32> = part.to_dtype(DType::F32)?.sum(0)?.to_vec1()?;
        sums.iter_mut()
            .zip(part)
            .for_each(|(sum, part)| *sum += f64::from(part));
    }
    Ok(sums.into_iter().map(|sum| sum / rows as f64).collect())
}
