//! The embeddings of tokens, some of which were added to a model that is frozen.

use candle_core::{Result, Tensor};

use super::differentiable::differentiable;

/// Looks up the rows of `tokens [count]`: those of the first tokens in the frozen `own [own tokens, hidden]`, and those of
/// the tokens behind them in `added [added tokens, hidden]`. Returns `[count, hidden]` in the type of `own`.
///
/// Neither matrix is copied. The gradient is that of `added` alone.
pub fn embedding(tokens: &Tensor, own: &Tensor, added: &Tensor) -> Result<Tensor> {
    let own = own.detach();
    let own_tokens = own.dim(0)? as u32;
    let of_added = tokens.ge(own_tokens)?.unsqueeze(1)?;
    let in_own = tokens.minimum(own_tokens.saturating_sub(1))?;
    // Own tokens have any place here, and add nothing there.
    let first = Tensor::full(own_tokens, tokens.shape(), tokens.device())?;
    let in_added = (tokens.maximum(&first)? - first)?;
    let (of_added_too, in_added_too) = (of_added.clone(), in_added.clone());
    differentiable(
        [added],
        |[added]| {
            let own = own.index_select(&in_own, 0)?;
            let added = added.index_select(&in_added, 0)?.to_dtype(own.dtype())?;
            (of_added.broadcast_as(own.shape())?).where_cond(&added, &own)
        },
        move |[added], gradient, _| {
            let gradient = gradient.to_dtype(added.dtype())?;
            let kept = (of_added_too.broadcast_as(gradient.shape())?)
                .where_cond(&gradient, &gradient.zeros_like()?)?;
            let rows = added.zeros_like()?.index_add(&in_added_too, &kept, 0)?;
            Ok([Some(rows)])
        },
    )
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::ops::tests::{assert_close, wave};

    #[test]
    fn rows_and_gradients_are_those_of_one_embedding_of_all_tokens() {
        let tokens = Tensor::new(&[6u32, 0, 4, 5, 6, 3, 4, 6], &Device::Cpu).unwrap();
        let own = wave(&[4, 3], 0.2, DType::F64);
        let added = Var::from_tensor(&wave(&[3, 3], 7.0, DType::F64)).unwrap();
        let whole = Var::from_tensor(&Tensor::cat(&[&own, &added], 0).unwrap()).unwrap();
        let in_parts = embedding(&tokens, &own, &added).unwrap();
        let of_whole = whole.index_select(&tokens, 0).unwrap();
        assert_close(&in_parts, &of_whole);
        let weights = wave(&[8, 3], 1.3, DType::F64);
        let gradient = |rows: &Tensor, of: &Var| {
            let loss = (rows * &weights).unwrap().sum_all().unwrap();
            loss.backward().unwrap().remove(of).unwrap()
        };
        let expected = gradient(&of_whole, &whole).narrow(0, 4, 3).unwrap();
        assert_close(&gradient(&in_parts, &added), &expected);
    }

    #[test]
    fn added_rows_in_f32_beside_bf16_get_their_gradient_in_f32_and_none_without_their_tokens() {
        let own = wave(&[4, 3], 0.2, DType::BF16);
        let added = Var::from_tensor(&wave(&[3, 3], 7.0, DType::F32)).unwrap();
        let tokens = Tensor::new(&[0u32, 3], &Device::Cpu).unwrap();
        let rows = embedding(&tokens, &own, &added).unwrap();
        assert_eq!(rows.dtype(), DType::BF16);
        let gradients = rows.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&added).unwrap();
        assert_close(gradient, &added.zeros_like().unwrap());
    }
}
