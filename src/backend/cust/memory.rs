//! What operations keep in the memory of a device.

use cust::memory::{DeviceBuffer, DeviceCopy, DeviceSlice};

use super::driver_error;
use crate::backend::launch::{DevicePtr, TemperaturePlan, TokenSetsView};
use crate::{Result, Statistics, TokenSets};

/// Token sets.
pub(crate) struct DeviceSets {
    /// Offsets and tokens; `None` for the whole vocabulary.
    listed: Option<[DeviceBuffer<u32>; 2]>,
    vocabulary: u64,
}

impl DeviceSets {
    pub fn new(sets: &TokenSets) -> Result<Self> {
        let listed = match sets.as_raw() {
            Some((offsets, tokens)) => Some([upload(offsets)?, upload(tokens)?]),
            None => None,
        };
        Ok(Self {
            listed,
            vocabulary: u64::from(sets.max_token()) + 1,
        })
    }

    pub fn view(&self) -> TokenSetsView {
        let listed = self.listed.as_ref();
        let part = |index: usize| listed.and_then(|listed| address(&listed[index]));
        TokenSetsView {
            offsets: part(0),
            tokens: part(1),
            vocabulary: self.vocabulary,
        }
    }
}

/// The temperature of a pass, and where it goes on from if that is on the device.
pub(crate) struct PassTemperature<'a> {
    pub plan: TemperaturePlan,
    pub previous: Option<&'a DeviceBuffer<f64>>,
}

/// What a forward pass leaves.
pub(crate) struct Forwarded {
    /// One number, or one a position.
    pub loss: DeviceBuffer<f32>,
    pub temperature: DeviceBuffer<f64>,
    /// The fields of [`Statistics`].
    pub statistics: DeviceBuffer<f64>,
    /// What its launches alone need. To free it waits for the device, so it lives as long as the rest.
    pub scratch: Vec<DeviceBuffer<u8>>,
}

impl Forwarded {
    /// Room for a pass with so many losses.
    pub fn room(losses: usize) -> Result<Self> {
        Ok(Self {
            loss: uninitialised(losses)?,
            temperature: uninitialised(1)?,
            statistics: uninitialised(Statistics::LENGTH + 1)?,
            scratch: Vec::new(),
        })
    }
}

pub(super) fn address<T: DeviceCopy>(slice: &DeviceSlice<T>) -> Option<DevicePtr> {
    DevicePtr::new(slice.as_device_ptr().as_raw())
}

/// Memory for `length` elements, for a kernel to write all of.
pub(super) fn uninitialised<T: DeviceCopy>(length: usize) -> Result<DeviceBuffer<T>> {
    // SAFETY: whoever asks for the memory writes it before anyone reads it. A device has no buffer
    // without elements.
    unsafe { DeviceBuffer::uninitialized(length.max(1)) }.map_err(driver_error)
}

pub(super) fn upload<T: DeviceCopy + bytemuck::Zeroable>(values: &[T]) -> Result<DeviceBuffer<T>> {
    // A device has no buffer without elements.
    let one = [T::zeroed()];
    let values = if values.is_empty() { &one } else { values };
    DeviceBuffer::from_slice(values).map_err(driver_error)
}
