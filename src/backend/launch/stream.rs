//! What plans are issued to.

use bytemuck::Pod;

use super::{DevicePtr, Launch};

/// How long memory is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// No longer than the stream. A later allocation of the same name may be given the same memory, in the order of what
    /// is issued.
    Scratch,
    /// As long as the owner of the stream decides.
    Kept,
}

/// A stream of launches, issued one after the other, with the memory that they need: candle's, cust's, or the emulator.
pub trait Stream {
    /// The error that issuing may end in.
    type Error: From<crate::Error>;

    /// Allocates uninitialised memory of so many bytes for each part, which begins at a multiple of 16. Returns `None` for
    /// a part of no bytes.
    ///
    /// # Errors
    /// Where there is no such memory.
    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N], Self::Error>;

    /// Uploads tables to kept memory. The first begins at a multiple of 16, and each of the others may begin where the one
    /// before it ends. Returns `None` for a table without entries.
    ///
    /// # Errors
    /// Those of [`allocate`](Self::allocate).
    fn upload<const N: usize>(
        &mut self,
        tables: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N], Self::Error>;

    /// Returns how many blocks of a launch are resident together, where a driver can tell.
    ///
    /// # Errors
    /// What the driver says.
    fn resident_blocks<P: Pod>(&self, launch: &Launch<P>) -> Result<Option<u32>, Self::Error> {
        let _ = launch;
        Ok(None)
    }

    /// Issues a launch.
    ///
    /// # Safety
    /// The parameters must be those of the kernel. Their addresses must be of device buffers that are as large as the
    /// kernel's source says, and that nobody else reads or writes until the launch is done.
    ///
    /// # Errors
    /// What the device says, when it refuses the launch.
    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<(), Self::Error>;
}

/// Returns how many bytes parts take that lie one behind the other, each at a multiple of `alignment`.
#[cfg(feature = "cuda")]
pub(crate) fn bytes_of_parts(bytes: &[usize], alignment: usize) -> usize {
    (bytes.iter().map(|bytes| bytes.next_multiple_of(alignment))).sum()
}

/// Returns where those parts are in memory that begins at `first`, and `None` for those of no bytes.
#[cfg(any(feature = "cuda", feature = "cust"))]
pub(crate) fn places_of_parts<const N: usize>(
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
