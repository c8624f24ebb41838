//! Addresses in device memory, and matrices that lie there.

use std::num::NonZeroU64;

use bytemuck::{PodInOption, ZeroableInOption};

/// An address in device memory. As an `Option` it is a pointer of a kernel, null for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct DevicePtr(NonZeroU64);

// SAFETY: as NonZeroU64, which the type is.
unsafe impl ZeroableInOption for DevicePtr {}
// SAFETY: as NonZeroU64, which the type is.
unsafe impl PodInOption for DevicePtr {}

impl DevicePtr {
    /// Returns the pointer to an address, and `None` for the address 0, where no buffer lies.
    #[must_use]
    pub const fn new(address: u64) -> Option<Self> {
        match NonZeroU64::new(address) {
            Some(address) => Some(Self(address)),
            None => None,
        }
    }

    /// Returns the address.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0.get()
    }

    /// Returns the pointer so many bytes further on.
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

/// A matrix in device memory, each of whose rows is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMatrix {
    /// The first element; `None` for a matrix without elements.
    pub address: Option<DevicePtr>,
    /// The distance between the first elements of two rows, in elements.
    pub row_stride: u64,
}
