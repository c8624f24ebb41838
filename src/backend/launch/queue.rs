//! What plans of several launches are issued to.

use bytemuck::Pod;

use super::{Launch, Product};

/// Where launches and products are issued, one after the other, and the memory that they need: a stream
/// of a device, or the emulator.
pub trait Queue {
    /// What issuing may end in.
    type Error: From<crate::Error>;

    /// The address of so many bytes that hold anything, begin at a multiple of 16, and live until all
    /// that is issued is done. (Of no bytes it is an address that is not looked at.)
    ///
    /// # Errors
    /// Where there is no such memory.
    fn allocate(&mut self, name: &'static str, bytes: usize) -> Result<u64, Self::Error>;

    /// The addresses of memory that holds these words, part by part, and lives as long. The first part
    /// begins at a multiple of 16, and each of the others may begin where the one before it ends.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    fn upload<const N: usize>(
        &mut self,
        parts: [(&'static str, &[u32]); N],
    ) -> Result<[u64; N], Self::Error>;

    /// Issues a launch.
    ///
    /// # Safety
    /// The parameters must be those of the kernel, and their addresses must be of device buffers that
    /// are as large as the kernel's source says, and that nobody else reads or writes meanwhile.
    ///
    /// # Errors
    /// What the device says, when it refuses the launch.
    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<(), Self::Error>;

    /// Issues a product.
    ///
    /// # Safety
    /// The same of the addresses, which must hold what the product says.
    ///
    /// # Errors
    /// What the device says, when it refuses the product.
    unsafe fn multiply(&mut self, product: &Product) -> Result<(), Self::Error>;
}
