//! `kernels/decode_scores.cu` and `kernels/decode_choices.cu` with their plans, in the emulator,
//! against searches in plain code and against the search on the CPU in f64.

#[path = "../emulated/mod.rs"]
mod emulated;
#[path = "../decode/model.rs"]
#[allow(dead_code)]
mod model;
#[path = "../emulator_dense/number.rs"]
#[allow(dead_code)]
mod number;

mod counts;
mod device;
mod exact;
mod limits;
mod searches;
