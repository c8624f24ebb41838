//! Streams, which launch plans are issued to.

use bytemuck::Pod;

use super::{DevicePtr, Launch};

/// The lifetime of memory that a stream allocates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// The memory is freed with the stream. A later allocation of the same name may reuse it, because the launches that use
    /// it run in the order in which they are issued.
    Scratch,
    /// The memory lives as long as the owner of the stream keeps it.
    Kept,
}

/// A stream that runs launches in the order in which they are issued, and allocates the memory that they need. candle, cust and
/// the emulator implement it.
pub trait Stream {
    /// The error of issuing a launch or allocating memory.
    type Error: From<crate::Error>;

    /// Allocates uninitialised memory for parts, each with a name and a size in bytes. Each part is aligned to 16 bytes.
    /// Returns `None` for a part of 0 bytes.
    ///
    /// # Errors
    /// The allocator's error, if there is not enough memory.
    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N], Self::Error>;

    /// Uploads tables to kept memory. Only the first is aligned to 16 bytes: each of the others may begin where the previous
    /// one ends. Returns `None` for a table without entries.
    ///
    /// # Errors
    /// Those of [`allocate`](Self::allocate).
    fn upload<const N: usize>(
        &mut self,
        tables: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N], Self::Error>;

    /// Returns how many blocks of a launch are resident at the same time; `None` if the implementation has no driver to ask.
    ///
    /// # Errors
    /// The driver's error.
    fn resident_blocks<P: Pod>(&self, launch: &Launch<P>) -> Result<Option<u32>, Self::Error> {
        let _ = launch;
        Ok(None)
    }

    /// Issues a launch.
    ///
    /// # Safety
    /// The parameters must be those of the kernel. Their addresses must be of device buffers that have the sizes that the
    /// kernel's source documents, and that nothing else reads or writes until the launch is done.
    ///
    /// # Errors
    /// The device's error, if it refuses the launch.
    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<(), Self::Error>;
}

/// Returns the size of consecutive parts, in bytes, each aligned to `alignment`.
#[cfg(any(feature = "cuda", feature = "raw-cuda"))]
pub(crate) fn bytes_of_parts(bytes: &[usize], alignment: usize) -> usize {
    (bytes.iter().map(|bytes| bytes.next_multiple_of(alignment))).sum()
}

/// Returns the addresses of consecutive parts in memory that begins at `first`, each aligned to `alignment`. Returns `None` for
/// a part of 0 bytes.
#[cfg(any(feature = "cuda", feature = "cust", feature = "raw-cuda"))]
pub(crate) fn addresses_of_parts<const N: usize>(
    first: Option<DevicePtr>,
    bytes: [usize; N],
    alignment: usize,
) -> [Option<DevicePtr>; N] {
    let mut end = 0;
    bytes.map(|bytes| {
        let begin = end;
        end += bytes.next_multiple_of(alignment) as u64;
        Some(first?.offset(begin)).filter(|_| bytes > 0)
    })
}
