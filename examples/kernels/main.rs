//! Writes docs/kernels.md: what the kernels take of a device, what they move, and a model of the time that takes.
//!
//! ```sh
//! eval "$(scripts/cuda-toolkit)"
//! cargo run --features cuda --example kernels > docs/kernels.md
//! ```

#[path = "../../tests/emulator_dense/device.rs"]
#[allow(dead_code)]
mod device;
#[path = "../../tests/emulated/mod.rs"]
mod emulated;
#[path = "../../tests/emulator_dense/number.rs"]
mod number;
#[path = "../../build/ptxas.rs"]
mod ptxas;
#[path = "../../benches/support/mod.rs"]
mod support;

mod linear;
mod model;
mod moved;
mod recorder;
mod resources;
mod time;

fn main() {
    println!(
        "# Kernels\n\n\
         Written by `cargo run --features cuda --example kernels > docs/kernels.md` (after \
         `eval \"$(scripts/cuda-toolkit)\"`). Nothing\n\
         on this page was measured on a GPU: registers and code are the compiler's, bytes are what \
         the emulator counts,\nfloors and times are computed. What a GPU has shown is in [gpu.md](gpu.md).\n"
    );
    resources::print();
    moved::print();
    linear::print();
    time::print();
}
