//! Addresses and matrices in device memory.

use std::num::NonZeroU64;

use bytemuck::{PodInOption, ZeroableInOption};

/// An address in device memory. `Option<DevicePtr>` has the layout of a kernel's pointer, with null for `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct DevicePtr(NonZeroU64);

// SAFETY: the type is a transparent NonZeroU64, which is ZeroableInOption.
unsafe impl ZeroableInOption for DevicePtr {}
// SAFETY: the type is a transparent NonZeroU64, which is PodInOption.
unsafe impl PodInOption for DevicePtr {}

impl DevicePtr {
    /// Returns the pointer to an address, and `None` for the null address.
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

    /// Returns the pointer advanced by `bytes`.
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
    /// The row stride, in elements.
    pub row_stride: u64,
}
