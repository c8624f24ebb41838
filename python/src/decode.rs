//! Decoding: masks for loops that others write, and searches over the logits of a callback.

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor, WithDType};
use candle_trie::Normalisation;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::memory::{Dtype, RawMatrix, slice_mut, with_element};
use crate::python_error;
use crate::threads::{locked_on_threads, on_threads};
use crate::trie::{TokenTrie, walk};

/// Copies the scores `[R, V]` of the tokens that continue an item to `to`, contiguous, which holds −∞. `ids` are int64 tokens
/// `[R, T]`, whose part of an item begins at `start`. Behind a whole item, and behind tokens that begin none, `end` is allowed
/// alone. With a temperature, the scores are log-probabilities of the allowed tokens at it.
///
/// It runs on one thread: these are few numbers, and between the layers of a model PyTorch's own threads wait busily on all cores.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn mask_scores(
    py: Python,
    trie: &TokenTrie,
    ids: RawMatrix,
    start: usize,
    dtype: Dtype,
    scores: RawMatrix,
    end: u32,
    temperature: Option<f64>,
    to: (usize, usize),
) -> PyResult<()> {
    let vocabulary = scores.width();
    check_vocabulary(trie, end, vocabulary)?;
    check_start(ids, start)?;
    // SAFETY: the package keeps the tensor alive, and does not write it.
    let ids = unsafe { ids.view::<i64>() }?;
    with_element!(dtype, T => {
        // SAFETY: the package keeps the tensors alive. The result is a new one.
        let (scores, to) = unsafe { (scores.view::<T>()?, slice_mut::<T>(to.0, to.1)?) };
        py.detach(|| {
            let end = [end];
            for (row, to) in to.chunks_mut(vocabulary).enumerate() {
                let allowed = allowed(&trie.0, &ids.row(row)[start..]).unwrap_or(&end);
                let scores = scores.row(row);
                let shift = temperature.map(|temperature| {
                    let scaled = allowed.iter().map(|&v| scores[v as usize].to_f64() / temperature);
                    (temperature, log_sum_exp(scaled))
                });
                for &token in allowed {
                    let score = scores[token as usize];
                    to[token as usize] = match shift {
                        None => score,
                        Some((temperature, sum)) => T::from_f64(score.to_f64() / temperature - sum),
                    };
                }
            }
        });
    });
    Ok(())
}

/// Returns the numbers, int64 `[2, n]`, of the rows and the tokens that [`mask_scores`] would leave of scores `[R, vocabulary]`.
#[pyfunction]
pub fn allowed_tokens<'py>(
    py: Python<'py>,
    trie: &TokenTrie,
    ids: RawMatrix,
    start: usize,
    vocabulary: usize,
    end: u32,
) -> PyResult<Bound<'py, PyBytes>> {
    check_vocabulary(trie, end, vocabulary)?;
    check_start(ids, start)?;
    let count = ids.rows();
    // SAFETY: the package keeps the tensor alive, and does not write it.
    let ids = unsafe { ids.view::<i64>() }?;
    let (mut rows, mut tokens) = (Vec::new(), Vec::new());
    for row in 0..count {
        let end = [end];
        let allowed = allowed(&trie.0, &ids.row(row)[start..]).unwrap_or(&end);
        rows.extend(std::iter::repeat_n(row as i64, allowed.len()));
        tokens.extend(allowed.iter().map(|&token| i64::from(token)));
    }
    rows.append(&mut tokens);
    Ok(PyBytes::new(py, bytemuck::cast_slice(&rows)))
}

fn check_start(ids: RawMatrix, start: usize) -> PyResult<()> {
    match start <= ids.width() {
        true => Ok(()),
        false => Err(PyValueError::new_err(format!(
            "prompt_length: expected at most the {} tokens of input_ids, found {start} (with inputs_embeds, and in the decoder of an \
             encoder-decoder model, generate passes other tokens than those of the prompt)",
            ids.width()
        ))),
    }
}

fn check_vocabulary(trie: &TokenTrie, end: u32, vocabulary: usize) -> PyResult<()> {
    let largest = trie.0.max_token().max(end) as usize;
    match largest < vocabulary {
        true => Ok(()),
        false => Err(PyValueError::new_err(format!(
            "token {largest} is outside of the {vocabulary} scores of a row"
        ))),
    }
}

/// Returns the tokens that continue an item behind a prefix, and `None` behind a whole item or what begins none.
fn allowed<'a>(trie: &'a candle_trie::TokenTrie, prefix: &[i64]) -> Option<&'a [u32]> {
    let node = walk(trie, prefix)?;
    Some(trie.children(node)).filter(|tokens| !tokens.is_empty())
}

fn log_sum_exp(scores: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = scores.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return 0.0;
    }
    largest
        + scores
            .map(|score| (score - largest).exp())
            .sum::<f64>()
            .ln()
}

/// A recommended path: its items, its log-probability, and its score.
type Found = (Vec<u64>, f64, f64);

/// The row that each beam continues, and the tokens that continue it.
type Step = (Vec<u32>, Vec<Vec<u32>>);

/// See `candle_trie.BeamSearch`.
#[pyclass(frozen)]
pub struct BeamSearch(Mutex<candle_trie::BeamSearch>);

#[pymethods]
impl BeamSearch {
    #[new]
    fn new(
        trie: &TokenTrie,
        users: usize,
        width: usize,
        temperature: f64,
        over_vocabulary: bool,
        length_penalty: f64,
        exclude: Option<Vec<Vec<u64>>>,
    ) -> PyResult<Self> {
        let normalisation = match over_vocabulary {
            true => Normalisation::Vocabulary,
            false => Normalisation::Trie,
        };
        let search = candle_trie::BeamSearch::new(&trie.0, users, width, temperature)
            .and_then(|search| {
                (search.with_normalisation(normalisation)).with_length_penalty(length_penalty)
            })
            .and_then(|search| match exclude {
                Some(items) => search.exclude_items(&items),
                None => Ok(search),
            });
        search
            .map(|search| Self(Mutex::new(search)))
            .map_err(python_error)
    }

    #[getter]
    fn common_prefix(&self) -> Vec<u32> {
        self.locked(|search| search.common_prefix().to_vec())
    }

    #[getter]
    fn beam_users(&self) -> Vec<u32> {
        self.locked(|search| search.beam_users())
    }

    /// Takes the logits `[active beams, V]`. Returns the parents and the tokens of the next beams, and None at the end.
    fn step(&self, py: Python, dtype: Dtype, logits: RawMatrix) -> PyResult<Option<Step>> {
        // SAFETY: the package keeps the tensor alive, and does not write it.
        let logits = with_element!(dtype, T => unsafe { copy::<T>(logits) })?;
        let step = locked_on_threads(py, &self.0, |search| search.step(&logits));
        Ok((step.map_err(python_error)?).map(|step| (step.parents, step.tokens)))
    }

    fn results(&self, user: usize) -> Vec<Found> {
        self.locked(|search| search.results(user).into_iter().map(found).collect())
    }
}

impl BeamSearch {
    fn locked<R>(&self, body: impl FnOnce(&mut candle_trie::BeamSearch) -> R) -> R {
        body(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn found(result: candle_trie::SearchResult) -> Found {
    (result.items, result.log_probability, result.score)
}

/// Copies logits to a tensor of candle. They are few: a row for each beam.
///
/// # Safety
/// That of [`RawMatrix::view`].
unsafe fn copy<T: WithDType>(logits: RawMatrix) -> PyResult<Tensor> {
    // SAFETY: the caller's promise.
    let matrix = unsafe { logits.view::<T>() }?;
    let rows = (0..logits.rows()).flat_map(|row| matrix.row(row).iter().copied());
    let shape = (logits.rows(), logits.width());
    Tensor::from_vec(rows.collect(), shape, &Device::Cpu)
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Finds the `k` most probable items by best-first search. `model` takes prefixes and returns the dtype and the memory of
/// their logits, which must stay until it is called again. It is called on the caller's thread, where PyTorch keeps whether
/// gradients are wanted, autocast, and the current device.
#[pyfunction]
pub fn exact_top_k(
    py: Python,
    trie: &TokenTrie,
    k: usize,
    temperature: f64,
    model: Py<PyAny>,
) -> PyResult<Vec<Found>> {
    let search = candle_trie::ExactSearch::new(&trie.0, 1, k, temperature);
    let mut search = search.map_err(python_error)?;
    let mut read: Vec<Vec<u32>> = Vec::new();
    while let Some(wanted) = search.next_expansion() {
        let prefix = |(parent, tokens): (&Option<u32>, &Vec<u32>)| {
            let read = parent.map_or(search.common_prefix(), |row| &read[row as usize]);
            [read, tokens].concat()
        };
        let prefixes: Vec<_> = wanted
            .parents
            .iter()
            .zip(&wanted.tokens)
            .map(prefix)
            .collect();
        let answer = model.call1(py, (prefixes.clone(),))?;
        let (dtype, logits) = answer.extract::<(Dtype, RawMatrix)>(py)?;
        // SAFETY: the package keeps the tensor until the next call, and does not write it.
        let logits = with_element!(dtype, T => unsafe { copy::<T>(logits) })?;
        read.extend(prefixes);
        on_threads(py, || search.step(&logits)).map_err(python_error)?;
    }
    Ok(search.results(0).into_iter().map(found).collect())
}
