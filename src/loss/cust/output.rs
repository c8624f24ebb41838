//! The results of a pass in device memory.

use std::fmt;
use std::rc::Rc;

use ::cust::memory::{DeviceBuffer, DeviceCopy, DeviceSlice};
use ::cust::stream::Stream;

use crate::backend::cust::memory::{nonempty_address, uninitialised};
use crate::backend::cust::stream::CustStream;
use crate::backend::cust::{Executor, driver_error};
use crate::backend::launch::ForwardResults;
use crate::{Result, Statistics};

/// The results of a pass in device memory. Reading them waits for the device, and so does dropping them, because this frees the
/// memory that the launches use.
pub struct LossOutput {
    loss: DeviceBuffer<f32>,
    losses: usize,
    pub(super) temperature: Rc<DeviceBuffer<f64>>,
    statistics: DeviceBuffer<f64>,
    _scratch: Vec<DeviceBuffer<u8>>,
}

impl LossOutput {
    /// Issues a pass with `issue`, whose loss has `losses` elements.
    pub(super) fn of(
        executor: &Executor,
        stream: &Stream,
        losses: usize,
        issue: impl FnOnce(&mut CustStream, ForwardResults) -> Result<()>,
    ) -> Result<Self> {
        let mut output = Self {
            loss: uninitialised(losses)?,
            losses,
            temperature: Rc::new(uninitialised(1)?),
            // The last element is the sum of BEAR's weights.
            statistics: uninitialised(Statistics::LENGTH + 1)?,
            _scratch: Vec::new(),
        };
        let results = ForwardResults {
            loss: nonempty_address(&output.loss)?,
            statistics: nonempty_address(&output.statistics)?,
            temperature: nonempty_address(&output.temperature)?,
        };
        let mut stream = CustStream::new(executor, stream);
        issue(&mut stream, results)?;
        output._scratch = stream.into_held();
        Ok(output)
    }

    /// Returns the loss on the device, with the elements of [`read_loss`](Self::read_loss). Without positions it is a buffer of
    /// one element.
    #[must_use]
    pub fn loss(&self) -> &DeviceSlice<f32> {
        &self.loss
    }

    /// Reads the loss: one number, or one for each position where the reduction is none.
    ///
    /// # Errors
    /// The driver's error, of this or of earlier work.
    pub fn read_loss(&self) -> Result<Vec<f32>> {
        let mut loss = read(&self.loss)?;
        loss.truncate(self.losses);
        Ok(loss)
    }

    /// Reads the τ that the pass used.
    ///
    /// # Errors
    /// Those of [`read_loss`](Self::read_loss).
    pub fn read_temperature(&self) -> Result<f64> {
        Ok(read(&self.temperature)?[0])
    }

    /// Reads the statistics of the rows.
    ///
    /// # Errors
    /// Those of [`read_loss`](Self::read_loss).
    pub fn read_statistics(&self) -> Result<Statistics> {
        let mut fields = [0.0; Statistics::LENGTH];
        // The last element is the sum of BEAR's weights.
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
