//! The arithmetic, free of candle: what a batch asks for, and how a machine computes it.

pub(crate) mod batch;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod launch;
