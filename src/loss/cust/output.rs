//! What a pass leaves in device memory.

use std::fmt;
use std::rc::Rc;

use ::cust::memory::{DeviceBuffer, DeviceCopy, DeviceSlice};

use crate::backend::cust::driver_error;
use crate::backend::cust::memory::Forwarded;
use crate::{Result, Statistics};

/// What a pass leaves in device memory, to be read or used there. Reading waits for the device, and
/// so does dropping it: what the launches used goes with it.
pub struct LossOutput {
    loss: DeviceBuffer<f32>,
    losses: usize,
    pub(super) temperature: Rc<DeviceBuffer<f64>>,
    statistics: DeviceBuffer<f64>,
    _scratch: Vec<DeviceBuffer<u8>>,
}

impl LossOutput {
    pub(super) fn new(left: Forwarded, losses: usize) -> Self {
        Self {
            loss: left.loss,
            losses,
            temperature: left.temperature.into(),
            statistics: left.statistics,
            _scratch: left.scratch,
        }
    }

    /// The loss on the device, as [`read_loss`](Self::read_loss) has it; a buffer of one element
    /// where there is no position.
    #[must_use]
    pub fn loss(&self) -> &DeviceSlice<f32> {
        &self.loss
    }

    /// The loss: one number, or one a position where the reduction is none.
    ///
    /// # Errors
    /// What the driver says, of the work before too.
    pub fn read_loss(&self) -> Result<Vec<f32>> {
        let mut loss = read(&self.loss)?;
        loss.truncate(self.losses);
        Ok(loss)
    }

    /// τ as the pass used it.
    ///
    /// # Errors
    /// As [`read_loss`](Self::read_loss).
    pub fn read_temperature(&self) -> Result<f64> {
        Ok(read(&self.temperature)?[0])
    }

    /// The statistics of the rows.
    ///
    /// # Errors
    /// As [`read_loss`](Self::read_loss).
    pub fn read_statistics(&self) -> Result<Statistics> {
        let mut fields = [0.0; Statistics::LENGTH];
        // Behind them is what BEAR writes.
        fields.copy_from_slice(&read(&self.statistics)?[..Statistics::LENGTH]);
        Ok(bytemuck::cast(fields))
    }
}

impl fmt::Debug for LossOutput {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LossOutput")
            .field("losses", &self.losses)
            .finish_non_exhaustive()
    }
}

pub(super) fn read<T: DeviceCopy + Default>(buffer: &DeviceSlice<T>) -> Result<Vec<T>> {
    buffer.as_host_vec().map_err(driver_error)
}
