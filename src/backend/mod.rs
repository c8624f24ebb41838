//! The arithmetic, free of candle: what a batch asks for, and how a machine computes it.

pub(crate) mod batch;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cust")]
pub(crate) mod cust;
pub mod launch;
#[cfg(any(feature = "cuda", feature = "cust"))]
mod modules;
#[cfg(any(feature = "cuda", feature = "cust"))]
mod product;
