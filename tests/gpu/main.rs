//! Tests that need a GPU, and are ignored unless asked for: `scripts/gpu-check`.
#![cfg(feature = "cuda")]

#[path = "../dense/batch.rs"]
#[allow(dead_code)]
mod batch;
#[path = "../emulated/mod.rs"]
mod emulated;

mod decode;
mod dense;
mod linear;
#[path = "../linear/batch.rs"]
#[allow(dead_code)]
mod linear_batch;

use candle_core::Device;

fn cuda() -> Device {
    Device::new_cuda(0).expect("these tests need a GPU")
}
