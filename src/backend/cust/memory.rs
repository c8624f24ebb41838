//! Token sets and other buffers in device memory, through cust.

use cust::memory::{DeviceBuffer, DeviceCopy, DeviceSlice};

use super::driver_error;
use crate::backend::launch::{DevicePtr, TokenSetsView};
use crate::{Error, Result, TokenSets};

/// Token sets in device memory.
pub(crate) struct DeviceSets {
    /// The offsets and the tokens; `None` for the whole vocabulary.
    listed: Option<[DeviceBuffer<u32>; 2]>,
    vocabulary: u64,
}

impl DeviceSets {
    pub fn new(sets: &TokenSets) -> Result<Self> {
        let listed = match sets.to_upload()? {
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

/// Returns the address of a slice, and `None` for a slice without elements.
pub(crate) fn address<T: DeviceCopy>(slice: &DeviceSlice<T>) -> Option<DevicePtr> {
    DevicePtr::new(slice.as_device_ptr().as_raw())
}

/// Returns the address of a slice, and an error for a slice without elements.
pub(crate) fn nonempty_address<T: DeviceCopy>(slice: &DeviceSlice<T>) -> Result<DevicePtr> {
    address(slice).ok_or_else(|| Error::Malformed {
        what: "slice",
        detail: "it has no address on the device".into(),
    })
}

/// Allocates uninitialised memory for `length` elements.
pub(crate) fn uninitialised<T: DeviceCopy>(length: usize) -> Result<DeviceBuffer<T>> {
    // SAFETY: the elements have no invalid bits, and the kernels write them before they are read. The driver does not allocate
    // buffers of 0 bytes.
    unsafe { DeviceBuffer::uninitialized(length.max(1)) }.map_err(driver_error)
}

pub(super) fn upload<T: DeviceCopy + bytemuck::Zeroable>(values: &[T]) -> Result<DeviceBuffer<T>> {
    // The driver does not allocate buffers of 0 bytes.
    let one = [T::zeroed()];
    let values = if values.is_empty() { &one } else { values };
    DeviceBuffer::from_slice(values).map_err(driver_error)
}
