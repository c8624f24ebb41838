//! The arithmetic: what a batch asks for, and how a machine computes it. `cpu` and `launch` are free of
//! candle, but for the error type; `cuda` and `cust` issue to its device and to cust's,
//! and `launcher` to any stream of CUDA's driver.

pub(crate) mod batch;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cust")]
pub(crate) mod cust;
pub mod launch;
#[cfg(any(feature = "cuda", feature = "raw-cuda"))]
pub(crate) mod launcher;
#[cfg(any(feature = "cuda", feature = "cust", feature = "raw-cuda"))]
mod modules;
