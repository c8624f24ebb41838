//! What plans of several launches are issued to.

use bytemuck::Pod;

use super::{DevicePtr, Launch};

/// How long memory is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// No longer than the queue, and under the same name it may be given again: both in the order of
    /// what is issued.
    Scratch,
    /// As long as whoever owns the queue sees to.
    Kept,
}

/// Where launches are issued, one after the other, and the memory that they need: a stream of a device,
/// or the emulator.
pub trait Queue {
    /// What issuing may end in.
    type Error: From<crate::Error>;

    /// Allocates uninitialised memory of so many bytes each, which begins at a multiple of 16. `None` for no
    /// bytes.
    ///
    /// # Errors
    /// Where there is no such memory.
    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N], Self::Error>;

    /// Uploads words, part by part, to kept memory. The first part begins at a multiple of 16, and each of
    /// the others may begin where the one before it ends. `None` for no words.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    fn upload<const N: usize>(
        &mut self,
        parts: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N], Self::Error>;

    /// How many blocks of a launch are resident together, where a driver can tell.
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
    /// The parameters must be those of the kernel, and their addresses must be of device buffers that
    /// are as large as the kernel's source says, and that nobody else reads or writes meanwhile.
    ///
    /// # Errors
    /// What the device says, when it refuses the launch.
    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<(), Self::Error>;
}

/// How many bytes parts of so many bytes take, one behind the other, each at a multiple of `alignment`.
#[cfg(feature = "cuda")]
pub(crate) fn bytes_of_parts(bytes: &[usize], alignment: usize) -> usize {
    (bytes.iter().map(|bytes| bytes.next_multiple_of(alignment))).sum()
}

/// Where those parts are in memory that begins at `first`: `None` for those of no bytes.
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
