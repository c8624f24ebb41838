//! What the kernels themselves cost on a GPU: the device's own time, beside what the same device moves
//! in a copy and computes in a matrix product.
//!
//! usage: kernels [dense] [linear]
//!
//! Times are by CUDA events, medians over samples; the device has other work until the host has issued
//! a sample, so that it never waits for the host. *Cold* is with nothing of the inputs in the L2.

mod kernels {
    pub mod dense;
    pub mod launches;
    pub mod linear;
    pub mod number;
    pub mod pool;
    pub mod table;
    pub mod timer;
    pub mod work;
}
mod support;

use candle_core::{Device, Result};
use kernels::timer::Timer;

fn main() -> Result<()> {
    // Cargo adds options of its own.
    let mut parts: Vec<String> = (std::env::args().skip(1))
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if let Some(part) = (parts.iter()).find(|part| !["dense", "linear"].contains(&part.as_str())) {
        candle_core::bail!("usage: kernels [dense] [linear]; there is no part '{part}'");
    }
    if parts.is_empty() {
        parts = vec!["dense".into(), "linear".into()];
    }
    let device = support::device();
    let Device::Cuda(device) = device else {
        unreachable!("this benchmark needs the feature cuda, and with it there is no other device")
    };
    let timer = Timer::new(&device)?;
    timer.print_machine()?;
    for part in parts {
        match part.as_str() {
            "dense" => kernels::dense::print(&timer)?,
            _ => kernels::linear::print(&timer)?,
        }
    }
    Ok(())
}
