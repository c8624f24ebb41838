//! cuBLAS in the context of an executor.

use cudarc::cublas::{result, sys};
use cust::stream::Stream;

use crate::Result;
use crate::backend::launch::Product;
use crate::backend::product::{blas_error, multiply};

/// A handle in the context that was current when it was made.
pub(super) struct Blas(sys::cublasHandle_t);

impl Blas {
    pub fn new() -> Result<Self> {
        result::create_handle().map(Self).map_err(blas_error)
    }

    /// Issues a product on a stream.
    ///
    /// # Safety
    /// The context must be current, and the addresses must be of device memory that holds what the
    /// product says, until it is done.
    pub unsafe fn multiply(&self, stream: &Stream, product: &Product) -> Result<()> {
        // SAFETY: the handle lives as long as `self`; for the rest the caller answers.
        unsafe {
            result::set_stream(self.0, stream.as_inner().cast()).map_err(blas_error)?;
            multiply(self.0, product)
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: nothing else has the handle. An error here has nobody to hear it.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}
