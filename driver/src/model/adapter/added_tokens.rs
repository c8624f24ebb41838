//! Reads the rows of tokens that were added to a model, as PEFT keeps them.

use std::ops::Range;

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Tensor};

use super::{PREFIX, SafetensorsWeights};
use crate::model::{AddedRows, EMBEDDING, HEAD, Llama, Weights, trained_rows_of};

/// How far a value of an embedding that PEFT saved whole may be from the model's, relative to the largest of its part: both
/// may have been rounded to bf16, or come from quantised weights.
const ROUNDING: f32 = 0.02;
/// Rows of an embedding that are compared at once.
const ROWS_AT_ONCE: usize = 4_096;

/// Adds tokens to a model, with their rows in a file. Where PEFT has trained the rows of some modules alone, and after it has
/// resized an embedding, the file holds whole embeddings and heads. Their other rows must be the model's.
pub fn load(
    model: &mut Llama,
    tokens: Range<usize>,
    weights: &mut SafetensorsWeights,
) -> Result<()> {
    let own = model.own_rows(tokens.start)?;
    let Some(embedding) = rows(EMBEDDING, &tokens, &own.embedding, weights)? else {
        bail!("there is no tensor {PREFIX}{}", trained_rows_of(EMBEDDING));
    };
    let head = rows(
        HEAD,
        &tokens,
        own.head.as_ref().unwrap_or(&own.embedding),
        weights,
    )?;
    let head = match (&own.head, head) {
        (Some(_), None) => bail!(
            "there are no rows of {HEAD} for the {} added tokens: save the adapters with PEFT's save_embedding_layers=True",
            tokens.len()
        ),
        (None, Some(head)) => {
            ensure!(
                difference(&head, &embedding)? == 0.0,
                "the rows of {HEAD} for the {} added tokens differ from those of {EMBEDDING}, which is the model's head",
                tokens.len()
            );
            None
        }
        (_, head) => head,
    };
    model.add_tokens(tokens, AddedRows { embedding, head })
}

/// Takes the rows of added tokens out of a file, whose names for a whole weight differ by whether rows of it are trained.
fn rows(
    weight: &str,
    tokens: &Range<usize>,
    own: &Tensor,
    weights: &mut SafetensorsWeights,
) -> Result<Option<Tensor>> {
    let hidden = own.dim(1)?;
    let trained_name = trained_rows_of(weight);
    let trained = weights.take(&trained_name)?;
    if let Some(trained) = &trained {
        ensure!(
            trained.dims() == [tokens.len(), hidden],
            "{trained_name} has the shape {:?}, where the model and trainable_token_indices ask for {:?}",
            trained.dims(),
            [tokens.len(), hidden]
        );
    }
    let wrapped = weight.replace(".weight", ".token_adapter.base_layer.weight");
    let whole = match weights.take(&wrapped)? {
        None => weights.take(weight)?,
        whole => whole,
    };
    let Some(whole) = whole else {
        return Ok(trained);
    };
    ensure!(
        whole.dims() == [tokens.end, hidden],
        "{weight} has the shape {:?}, expected {:?}: resize the model to the tokens of its tokenizer, without \
         pad_to_multiple_of",
        whole.dims(),
        [tokens.end, hidden]
    );
    for first in (0..tokens.start).step_by(ROWS_AT_ONCE) {
        let part =
            |weight: &Tensor| weight.narrow(0, first, ROWS_AT_ONCE.min(tokens.start - first));
        ensure!(
            difference(&part(&whole)?, &part(own)?)? <= ROUNDING,
            "the rows of {weight} for the model's own tokens are not the model's: the adapters belong to another model"
        );
    }
    Ok(Some(match trained {
        Some(trained) => trained,
        None => whole.narrow(0, tokens.start, tokens.len())?.contiguous()?,
    }))
}

/// Returns the largest difference of two tensors, relative to the largest value of the second.
fn difference(one: &Tensor, other: &Tensor) -> Result<f32> {
    let wide = |tensor: &Tensor| {
        tensor
            .to_device(&candle_core::Device::Cpu)?
            .to_dtype(DType::F32)
    };
    let (one, other) = (wide(one)?, wide(other)?);
    let largest = |tensor: &Tensor| tensor.abs()?.max_all()?.to_scalar::<f32>();
    Ok(largest(&(one - &other)?)? / largest(&other)?.max(f32::MIN_POSITIVE))
}
