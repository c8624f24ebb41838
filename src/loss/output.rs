//! What a loss gives back.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result, Statistics};

/// The loss of a batch, with the temperature and the statistics it was computed with.
///
/// Everything is a tensor on the device of the logits: reading one waits for the device, and is the
/// caller's choice.
#[derive(Debug, Clone)]
pub struct LossOutput {
    /// The loss: a scalar (the leading dimensions of the logits under
    /// [`Reduction::None`](crate::Reduction::None)), f32, or f64 for f64 logits. `backward()` works
    /// on it.
    pub loss: Tensor,
    /// τ: a scalar, f64.
    pub temperature: Tensor,
    /// The statistics that an adaptive temperature looks at, as the f64 fields of [`Statistics`];
    /// those of no row for a fixed one.
    pub statistics: Tensor,
    /// Under [`Bear`](crate::Bear), Σ w over the branching rows, each times the weight that the caller gave it:
    /// a scalar, f64. Losses under [`Reduction::Sum`](crate::Reduction::Sum) of several micro-batches, added up and
    /// divided by the sum of this, are the mean over all of them. `None` without BEAR.
    pub bear_weight: Option<Tensor>,
    /// How many rows were labelled.
    pub labelled_rows: usize,
    /// How many of them had more than one token to choose from.
    pub branching_rows: usize,
}

impl LossOutput {
    /// Reads the temperature.
    ///
    /// # Errors
    /// What candle reports of the transfer.
    pub fn read_temperature(&self) -> Result<f64> {
        Ok(self.temperature.to_scalar()?)
    }

    /// Reads the sum of the weights of [`Bear`](crate::Bear).
    ///
    /// # Errors
    /// What candle reports of the transfer.
    pub fn read_bear_weight(&self) -> Result<Option<f64>> {
        let weight = self.bear_weight.as_ref().map(Tensor::to_scalar);
        Ok(weight.transpose()?)
    }

    /// Reads the statistics.
    ///
    /// # Errors
    /// What candle reports of the transfer.
    pub fn read_statistics(&self) -> Result<Statistics> {
        let fields = self.statistics.to_vec1::<f64>()?;
        let fields = <[f64; Statistics::LENGTH]>::try_from(fields.as_slice());
        Ok(bytemuck::cast(fields.map_err(|_| {
            Error::LengthMismatch {
                what: "statistics fields",
                expected: Statistics::LENGTH,
                actual: self.statistics.elem_count(),
            }
        })?))
    }
}

/// The statistics as a tensor.
pub(super) fn statistics_tensor(statistics: &Statistics, device: &Device) -> Result<Tensor> {
    let fields: &[f64] = bytemuck::cast_slice(std::slice::from_ref(statistics));
    Ok(Tensor::from_slice(fields, fields.len(), device)?)
}

/// A number as a scalar tensor of f64.
pub(super) fn scalar(value: f64, device: &Device) -> Result<Tensor> {
    Ok(Tensor::new(value, device)?)
}

/// The dtype of the loss for these logits.
pub(super) fn loss_dtype(logits: DType) -> DType {
    match logits {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}
