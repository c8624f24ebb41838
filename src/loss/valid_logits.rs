//! The logits of the valid tokens, from which decoding computes its probabilities.

use candle_core::{D, Device, Tensor};
use rayon::prelude::*;

use super::head::Head;
use super::linear;
pub(crate) use super::linear::check_fit;
#[cfg(feature = "cuda")]
use super::tensor::check_loss_device;
use super::tensor::{Scalar, cpu, matrix, with_element};
use crate::backend::batch::{Batch, Denominator};
use crate::backend::cpu::element::Element;
use crate::backend::cpu::softmax;
use crate::{Error, Result, Row, Rows, TokenSets};

const LOGITS: &str = "logits";

/// Returns the logits of the tokens of `sets[row]`, for every row of `logits` `[rows, V]`.
pub(crate) fn of_logits(logits: &Tensor, all: &TokenSets, sets: &[u32]) -> Result<Vec<Vec<f64>>> {
    check_vocabulary(logits.dims().last(), all)?;
    if !logits.device().is_cpu() {
        let columns = tokens_of(all, sets);
        let index = Tensor::new(&columns[..], logits.device())?;
        return from_columns(
            &logits.index_select(&index, D::Minus1)?,
            &columns,
            all,
            sets,
        );
    }
    with_element!(logits.dtype(), LOGITS, T => rows_of::<T, _>(logits, |row, logits| {
        pick(logits, tokens(all, sets[row]))
    }))
}

/// Computes the same logits from hidden states `[rows, H]` and the head rows of these tokens alone. Every set must
/// have more than one token.
pub(crate) fn of_hidden(
    hidden: &Tensor,
    head: Head,
    all: &TokenSets,
    sets: &[u32],
) -> Result<Vec<Vec<f64>>> {
    if !hidden.device().is_cpu() {
        let columns = tokens_of(all, sets);
        return from_columns(
            &in_columns(hidden, head, all, &columns)?,
            &columns,
            all,
            sets,
        );
    }
    // A row needs a target, which does not matter here. The first token of its set is one.
    let row = |(position, &set): (usize, &u32)| Row {
        position: position as u32,
        set,
        target: (all.get(set)).map_or(0, |tokens| tokens.iter().next().unwrap_or(0)),
    };
    let rows = Rows::from_raw(sets.len(), sets.iter().enumerate().map(row).collect())?;
    let batch = Batch::new(all, &rows, None, Denominator::Given(1.0))?;
    linear::valid_logits(hidden, &head, &batch)
}

/// Returns the tokens of all of these sets, ascending.
fn tokens_of(all: &TokenSets, sets: &[u32]) -> Vec<u32> {
    let mut sets = sets.to_vec();
    sets.sort_unstable();
    sets.dedup();
    let mut of_all: Vec<u32> = sets.into_iter().flat_map(|set| tokens(all, set)).collect();
    of_all.sort_unstable();
    of_all.dedup();
    of_all
}

/// Returns the logits of `sets[row]` for every row of `[rows, columns]` on a device. They are few, and are copied to the host.
fn from_columns(
    logits: &Tensor,
    columns: &[u32],
    all: &TokenSets,
    sets: &[u32],
) -> Result<Vec<Vec<f64>>> {
    let logits = logits.to_device(&Device::Cpu)?;
    with_element!(logits.dtype(), LOGITS, T => rows_of::<T, _>(&logits, |row, logits| {
        let column = |token| columns.partition_point(|&other| other < token) as u32;
        pick(logits, tokens(all, sets[row]).map(column))
    }))
}

/// Computes the logits `[rows, columns]` of these tokens alone, from hidden states `[rows, H]`.
pub(crate) fn in_columns(
    hidden: &Tensor,
    head: Head,
    all: &TokenSets,
    columns: &[u32],
) -> Result<Tensor> {
    // On a device, an index out of bounds ends the context instead of being an error.
    check_fit(hidden, &head, all)?;
    match head.select(columns)? {
        (weight, Some(bias)) => Head::with_bias(&weight, &bias).logits(hidden),
        (weight, None) => Head::from(&weight).logits(hidden),
    }
}

/// Computes ln Σ exp(z/τ) over every row of `logits` `[rows, V]`; `None` for a row of −∞ only. Refuses logits that are NaN or +∞.
pub(crate) fn log_sums(logits: &Tensor, temperature: f64) -> Result<Vec<Option<f64>>> {
    let log_sums = with_element!(logits.dtype(), LOGITS, T => rows_of::<T, _>(logits, |row, logits| {
        log_sum(row, logits, temperature)
    }))?;
    log_sums.into_iter().collect()
}

fn log_sum<T: Element>(row: usize, logits: &[T], temperature: f64) -> Result<Option<f64>> {
    let log_sum = softmax::log_sum(logits, temperature);
    if log_sum.is_finite() {
        return Ok(Some(log_sum));
    }
    let values = logits.iter().map(|logit| logit.widen().into());
    match (0..)
        .zip(values)
        .find(|(_, value)| value.is_nan() || *value == f64::INFINITY)
    {
        Some((token, value)) => Err(Error::NonFinite {
            row,
            position: row as u32,
            token,
            value,
        }),
        None => Ok(None),
    }
}

/// Calls `of_row` with each row, in parallel, and returns the results.
fn rows_of<T: Scalar, R: Send>(
    logits: &Tensor,
    of_row: impl Fn(usize, &[T]) -> R + Sync,
) -> Result<Vec<R>> {
    let (storage, layout) = logits.storage_and_layout();
    let values = T::cpu_storage_as_slice(cpu(LOGITS, &storage)?)?;
    let logits = matrix(LOGITS, values, layout)?;
    let rows = layout.shape().elem_count() / logits.width.max(1);
    Ok((0..rows)
        .into_par_iter()
        .map(|row| of_row(row, &logits.values[row * logits.stride..][..logits.width]))
        .collect())
}

fn tokens(all: &TokenSets, set: u32) -> impl Iterator<Item = u32> {
    all.get(set).into_iter().flat_map(|tokens| tokens.iter())
}

fn pick<T: Element>(logits: &[T], columns: impl Iterator<Item = u32>) -> Vec<f64> {
    columns
        .map(|column| logits[column as usize].widen().into())
        .collect()
}

/// Refuses logits of a device or dtype that there are no kernels for.
#[cfg(feature = "cuda")]
pub(crate) fn check_for_kernels(logits: &Tensor) -> Result<()> {
    check_loss_device(LOGITS, logits)
}

/// Refuses a vocabulary that does not contain all tokens.
pub(crate) fn check_vocabulary(size: Option<&usize>, sets: &TokenSets) -> Result<()> {
    let vocabulary = size.copied().unwrap_or(0);
    let token = sets.max_token();
    if token as usize >= vocabulary {
        return Err(Error::TokenOutsideVocabulary { token, vocabulary });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_does_not_fit_is_refused_before_its_columns_are_selected() -> Result<()> {
        let all = TokenSets::from_raw(vec![0, 2], vec![1, 4])?;
        let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
        let (hidden, weight) = (zeros(&[1, 3])?, zeros(&[5, 3])?);
        let refused = |head: Head| in_columns(&hidden, head, &all, &[1, 4]).unwrap_err();
        let error = refused(Head::with_bias(&weight, &zeros(&[4])?)).to_string();
        assert!(error.contains('4') && error.contains('5'), "{error}");
        let error = refused(Head::from(&zeros(&[5, 2])?));
        assert!(
            matches!(
                error,
                Error::LengthMismatch {
                    expected: 3,
                    actual: 2,
                    ..
                }
            ),
            "{error}"
        );
        let error = refused(Head::from(&zeros(&[4, 3])?));
        assert!(
            matches!(
                error,
                Error::TokenOutsideVocabulary {
                    token: 4,
                    vocabulary: 4
                }
            ),
            "{error}"
        );
        Ok(())
    }

    #[test]
    fn gathered_columns_give_the_same_logits_as_whole_rows() -> Result<()> {
        let all = TokenSets::from_raw(vec![0, 3, 5, 9], vec![1, 4, 7, 0, 4, 2, 3, 7, 8])?;
        let sets = [2, 0, 2, 1];
        let numbers = |count: u32| (0..count).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        let hidden = Tensor::from_vec(numbers(4 * 3), (4, 3), &Device::Cpu)?;
        let weight = Tensor::from_vec(numbers(9 * 3), (9, 3), &Device::Cpu)?;
        let bias = Tensor::from_vec(numbers(9), 9, &Device::Cpu)?;
        let columns = tokens_of(&all, &sets);
        assert_eq!(columns, [0, 1, 2, 3, 4, 7, 8]);
        let (base, added) = (weight.narrow(0, 0, 4)?, weight.narrow(0, 4, 5)?);
        for head in [
            Head::with_bias(&weight, &bias),
            Head::with_added_rows(&base, &added),
        ] {
            let found = from_columns(
                &in_columns(&hidden, head, &all, &columns)?,
                &columns,
                &all,
                &sets,
            )?;
            assert_eq!(found, of_hidden(&hidden, head, &all, &sets)?);
            assert_eq!(found, of_logits(&head.logits(&hidden)?, &all, &sets)?);
        }
        Ok(())
    }
}
