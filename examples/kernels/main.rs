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
         This page says what the kernels need of a GPU, how many bytes they move, and how long they should take. Nothing on it \
         was measured on a GPU:\n[gpu.md](gpu.md) is about that. Registers and code sizes come from the compiler and bytes from the \
         emulator. Floors and times are computed.\n\n\
         `cargo run --features cuda --example kernels > docs/kernels.md` writes it (after `eval \"$(scripts/cuda-toolkit)\"`).\n"
    );
    resources::print();
    moved::print();
    linear::print();
    time::print();
}
