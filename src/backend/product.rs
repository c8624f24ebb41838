//! Matrix products on a CUDA device, by cuBLAS.

use std::ffi::c_int;

use cudarc::cublas::result::{self, CublasError};
use cudarc::cublas::sys;

use super::launch::{Element, Product};
use crate::{Error, Result};

/// Issues a product on the stream of a handle.
///
/// # Safety
/// The handle must be alive, in the current context, and the addresses must be of device memory that
/// holds what the product says, until it is done.
///
/// # Errors
/// What cuBLAS says, and sizes beyond its 32 bits.
pub(super) unsafe fn multiply(handle: sys::cublasHandle_t, product: &Product) -> Result<()> {
    let element = match product.element {
        Element::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Element::F16 => sys::cudaDataType_t::CUDA_R_16F,
        Element::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
    };
    // cuBLAS counts by columns: it is given the transpose of everything.
    let operation = |transposed| match transposed {
        true => sys::cublasOperation_t::CUBLAS_OP_T,
        false => sys::cublasOperation_t::CUBLAS_OP_N,
    };
    let (one, kept) = (1f32, if product.accumulates { 1f32 } else { 0f32 });
    // SAFETY: the caller's promise; the two factors are read by the call.
    let issued = unsafe {
        result::gemm_ex(
            handle,
            operation(product.right_transposed),
            operation(product.left_transposed),
            size(u64::from(product.columns))?,
            size(u64::from(product.rows))?,
            size(u64::from(product.inner))?,
            (&raw const one).cast(),
            product.right as *const _,
            element,
            size(product.right_stride)?,
            product.left as *const _,
            element,
            size(product.left_stride)?,
            (&raw const kept).cast(),
            product.result as *mut _,
            sys::cudaDataType_t::CUDA_R_32F,
            size(product.result_stride)?,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    };
    issued.map_err(blas_error)
}

pub(super) fn blas_error(error: CublasError) -> Error {
    candle_core::Error::Cuda(Box::new(error)).into()
}

fn size(size: u64) -> Result<c_int> {
    c_int::try_from(size).map_err(|_| Error::TooLarge {
        what: "matrix product",
        size,
        limit: i32::MAX as u64,
    })
}
