//! `kernels/dense_forward.cu` and `kernels/dense_backward.cu` with their plans, in the emulator,
//! against the definition of the loss in f64.

#[path = "../dense/batch.rs"]
#[allow(dead_code)]
mod batch;
#[path = "../emulated/mod.rs"]
mod emulated;

mod counts;
mod device;
mod options;
mod shapes;
