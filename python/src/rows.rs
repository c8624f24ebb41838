//! The rows of a batch, from its labels.

use pyo3::prelude::*;

use crate::memory::RawMatrix;
use crate::python_error;
use crate::threads::on_threads;
use crate::trie::Sets;

/// The label of an ignored position, as the library has it.
const IGNORED: i64 = -100;

/// The labelled positions of a batch.
#[pyclass(frozen)]
pub struct Rows(pub candle_trie::Rows);

#[pymethods]
impl Rows {
    /// Takes labels `[B, T]` of int64, which are walked along a trie. Over token sets, `numbers` `[B, T]` of int64 has the
    /// number of each label's set. `ignored` is the label of positions that have none. `shifted` says that position t predicts
    /// the label at t, and not the one after it.
    #[new]
    fn new(
        py: Python,
        sets: Sets,
        labels: RawMatrix,
        numbers: Option<RawMatrix>,
        ignored: i64,
        shifted: bool,
    ) -> PyResult<Self> {
        let trie = match &sets {
            Sets::Trie(trie) => Some(trie.get()),
            _ => None,
        };
        let width = labels.width();
        // SAFETY: the package keeps the tensors alive, and does not write them.
        let (labels, numbers) = unsafe {
            let numbers = numbers.map(|numbers| numbers.view::<i64>()).transpose()?;
            (labels.view::<i64>()?, numbers)
        };
        let rows = on_threads(py, || {
            let values = (0..labels.rows())
                .flat_map(|row| labels.row(row))
                .enumerate()
                .map(|(index, &label)| match label {
                    _ if label == ignored => Ok(IGNORED),
                    IGNORED => Err(candle_trie::Error::InvalidLabel {
                        batch_row: index / width,
                        position: index % width,
                        label,
                    }),
                    _ => Ok(label),
                })
                .collect::<candle_trie::Result<Vec<i64>>>()?;
            if let Some(numbers) = numbers {
                let numbers: Vec<i64> = (0..numbers.rows())
                    .flat_map(|row| numbers.row(row))
                    .copied()
                    .collect();
                return rows_of_sets(&values, &numbers, width, shifted);
            }
            let labels = candle_trie::Labels::new(&values, width)?;
            match (trie, shifted) {
                (Some(trie), true) => candle_trie::Rows::from_shifted(&trie.0, &labels),
                (Some(trie), false) => candle_trie::Rows::from_unshifted(&trie.0, &labels),
                (None, true) => candle_trie::Rows::unconstrained(&labels),
                (None, false) => candle_trie::Rows::unconstrained(labels.shifted()),
            }
        });
        rows.map(Self).map_err(python_error)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }
}

/// Returns the rows of labels `[B, T]` whose token sets have these numbers `[B, T]`.
fn rows_of_sets(
    labels: &[i64],
    numbers: &[i64],
    width: usize,
    shifted: bool,
) -> candle_trie::Result<candle_trie::Rows> {
    let mut rows = Vec::new();
    for (index, (&label, &number)) in labels.iter().zip(numbers).enumerate() {
        let (batch_row, position) = (index / width, index % width);
        // Without a position before it, a label is predicted by nothing.
        if label == IGNORED || (!shifted && position == 0) {
            continue;
        }
        let invalid = |label| candle_trie::Error::InvalidLabel {
            batch_row,
            position,
            label,
        };
        let target = u32::try_from(label).map_err(|_| invalid(label))?;
        let set = u32::try_from(number).map_err(|_| candle_trie::Error::Malformed {
            what: "numbers of token sets",
            detail: format!("batch row {batch_row}, position {position}: found {number}"),
        })?;
        let position = (index - usize::from(!shifted)) as u32;
        rows.push(candle_trie::Row {
            position,
            set,
            target,
        });
    }
    candle_trie::Rows::from_raw(labels.len(), rows)
}
