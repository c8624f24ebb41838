//! Addresses in device memory.

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
    /// The pointer to an address; `None` for the address 0, where no buffer lies.
    #[must_use]
    pub const fn new(address: u64) -> Option<Self> {
        match NonZeroU64::new(address) {
            Some(address) => Some(Self(address)),
            None => None,
        }
    }

    /// The address.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0.get()
    }

    /// The pointer so many bytes further on.
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}
