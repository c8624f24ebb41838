//! `kernels/linear_*.cu` with their plans, in the emulator, against the definition of the loss in
//! f64.

#[path = "../linear/batch.rs"]
#[allow(dead_code)]
mod batch;
#[path = "../emulated/mod.rs"]
mod emulated;
#[path = "../golden/case.rs"]
#[allow(dead_code)]
mod golden_case;
#[path = "../emulator_dense/number.rs"]
mod number;
#[path = "../../benches/support/mod.rs"]
mod support;

mod added_rows;
mod boundaries;
mod counts;
mod device;
mod golden;
mod items;
mod not_finite;
mod numerics;
mod options;
mod plan;
mod shapes;
mod whole_vocabulary;
