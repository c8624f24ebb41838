//! `kernels/dense_forward.cu` and `kernels/dense_backward.cu` with their plans, in the emulator,
//! against the definition of the loss in f64.

#[path = "../dense/batch.rs"]
#[allow(dead_code)]
mod batch;
#[path = "../emulated/mod.rs"]
mod emulated;

#[path = "../golden/case.rs"]
#[allow(dead_code)]
mod golden_case;

mod counts;
mod device;
mod golden;
mod number;
mod options;
mod shapes;
