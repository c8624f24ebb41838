//! The result of a loss.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result, Statistics};

/// The loss of a batch, with the temperature and the statistics it was computed with.
///
/// The tensors are on the device of the scores. Reading one waits for the device, which is left to the
/// caller: a training loop may read them a step later.
#[derive(Debug, Clone)]
pub struct LossOutput {
    /// The loss, which `backward()` works on. It is a scalar, or has the leading dimensions of the scores under
    /// [`Reduction::None`](crate::Reduction::None), and its dtype is f32, or f64 for f64 scores.
    pub loss: Tensor,
    /// The temperature τ that the loss was computed with, a scalar of f64.
    pub temperature: Tensor,
    /// The statistics that an adaptive temperature is computed from, as the f64 fields of [`Statistics`]
    /// (`[Statistics::LENGTH]`). For a fixed temperature they are those of no row.
    pub statistics: Tensor,
    /// The sum of BEAR's weights over the branching rows, each times the weight that the caller gave the row: a scalar of
    /// f64, or `None` without [`Bear`](crate::Bear). Losses under [`Reduction::Sum`](crate::Reduction::Sum) of several micro-batches, added up and
    /// divided by the sum of this, are the mean over all of them.
    pub bear_weight: Option<Tensor>,
    /// The number of labelled rows, unary ones included.
    pub labelled_rows: usize,
    /// The number of branching rows, whose sets have more than one token.
    pub branching_rows: usize,
}

impl LossOutput {
    /// Reads the temperature, and waits for its device.
    ///
    /// # Errors
    /// Those that candle reports of the transfer.
    pub fn read_temperature(&self) -> Result<f64> {
        Ok(self.temperature.to_scalar()?)
    }

    /// Reads the sum of BEAR's weights, and waits for its device. Returns `None` without [`Bear`](crate::Bear).
    ///
    /// # Errors
    /// Those that candle reports of the transfer.
    pub fn read_bear_weight(&self) -> Result<Option<f64>> {
        let weight = self.bear_weight.as_ref().map(Tensor::to_scalar);
        Ok(weight.transpose()?)
    }

    /// Reads the statistics, and waits for their device.
    ///
    /// # Errors
    /// Those that candle reports of the transfer.
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

/// Makes a tensor of the fields of statistics.
pub(super) fn statistics_tensor(statistics: &Statistics, device: &Device) -> Result<Tensor> {
    let fields: &[f64] = bytemuck::cast_slice(std::slice::from_ref(statistics));
    Ok(Tensor::from_slice(fields, fields.len(), device)?)
}

/// Makes a scalar tensor of f64.
pub(super) fn scalar(value: f64, device: &Device) -> Result<Tensor> {
    Ok(Tensor::new(value, device)?)
}

/// Returns the dtype of the loss for scores of this dtype.
pub(super) fn loss_dtype(logits: DType) -> DType {
    match logits {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}
