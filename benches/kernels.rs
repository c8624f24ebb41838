//! What the kernels themselves cost on a GPU: the device's own time, beside what the same device moves
//! in a copy.
//!
//! Every sample launches once on each of so many copies of the inputs that what was read of one has
//! left the L2 before its turn comes again; times are by CUDA events, medians over the samples.

mod kernels {
    pub mod dense;
    pub mod timer;
}
mod support;

use candle_core::{Device, Result};
use kernels::timer::Timer;

fn main() -> Result<()> {
    let device = support::device();
    let Device::Cuda(device) = device else {
        unreachable!("this benchmark needs the feature cuda, and with it there is no other device")
    };
    let timer = Timer::new(&device)?;
    timer.print_header();
    kernels::dense::print(&timer)
}
