//! Times launches by CUDA events, and prints them beside the bandwidth of the device.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaEvent;
use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute, CUevent_flags};
use candle_core::{CudaDevice, Result};

const SAMPLES: usize = 30;
/// What a device's memory is measured with.
const COPIED_BYTES: usize = 1 << 30;
/// How much of the device's free memory inputs may take.
const SHARE_OF_MEMORY: f64 = 0.6;
/// Beyond so many copies a sample takes longer than it says more.
const MOST_COPIES: usize = 64;

pub struct Timer {
    pub device: CudaDevice,
    l2_bytes: usize,
    free_bytes: usize,
    /// Bytes a second of a copy, which reads and writes.
    bandwidth: f64,
}

/// What a launch is measured against.
pub struct Moved {
    /// The fewest bytes that it must move.
    pub least: f64,
    /// The bytes of memory that it leaves in the L2.
    pub touched: f64,
    /// The size of its inputs and outputs.
    pub held: f64,
}

impl Timer {
    pub fn new(device: &CudaDevice) -> Result<Self> {
        let context = device.cuda_stream().context().clone();
        let l2_bytes =
            (context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)).w()?;
        let (free_bytes, _) = context.mem_get_info().w()?;
        let mut timer = Self {
            device: device.clone(),
            l2_bytes: l2_bytes.max(0) as usize,
            free_bytes,
            bandwidth: 0.0,
        };
        timer.bandwidth = 2.0 * COPIED_BYTES as f64 / timer.copy_seconds()?;
        Ok(timer)
    }

    /// How many copies of the inputs a launch needs so that it finds none of them in the L2.
    pub fn copies(&self, moved: &Moved) -> usize {
        let wanted = 1 + (2.0 * self.l2_bytes as f64 / moved.touched).ceil() as usize;
        let room = (SHARE_OF_MEMORY * self.free_bytes as f64 / moved.held) as usize;
        wanted.min(room).clamp(1, MOST_COPIES)
    }

    pub fn print_header(&self) {
        let name =
            (self.device.cuda_stream().context().name()).unwrap_or_else(|error| error.to_string());
        println!(
            "{name}: a copy moves {:.0} GB/s; L2 {:.0} MB",
            self.bandwidth / 1e9,
            self.l2_bytes as f64 / 1e6
        );
        println!(
            "\n| {:<46} | {:>9} | {:>9} | {:>8} | {:>7} | copies |",
            "kernel", "µs", "least MB", "GB/s", "of copy"
        );
        println!(
            "|{:-<48}|{:->11}|{:->11}|{:->10}|{:->9}|{:->8}|",
            "", ":", ":", ":", ":", ":"
        );
    }

    /// Times `launch`, which is given the number of the copy to run on, and prints a line.
    pub fn print(
        &self,
        name: &str,
        moved: &Moved,
        mut launch: impl FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let copies = self.copies(moved);
        let seconds = self.median_seconds(copies, &mut launch)?;
        let rate = moved.least / seconds;
        println!(
            "| {name:<46} | {:>9.2} | {:>9.3} | {:>8.1} | {:>5.1} % | {copies:>6} |",
            seconds * 1e6,
            moved.least / 1e6,
            rate / 1e9,
            100.0 * rate / self.bandwidth,
        );
        Ok(())
    }

    /// Seconds of one launch: the median over samples of one launch a copy.
    fn median_seconds(
        &self,
        copies: usize,
        launch: &mut impl FnMut(usize) -> Result<()>,
    ) -> Result<f64> {
        let mut seconds = Vec::with_capacity(SAMPLES);
        for sample in 0..=SAMPLES {
            let start = self.event()?;
            (0..copies).try_for_each(&mut *launch)?;
            let elapsed = start.elapsed_ms(&self.event()?).w()?;
            // The first loads code and settles clocks.
            if sample > 0 {
                seconds.push(f64::from(elapsed) / 1e3 / copies as f64);
            }
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[SAMPLES / 2])
    }

    fn event(&self) -> Result<CudaEvent> {
        let timed = CUevent_flags::CU_EVENT_DEFAULT;
        self.device.cuda_stream().record_event(Some(timed)).w()
    }

    fn copy_seconds(&self) -> Result<f64> {
        let source = self.device.alloc_zeros::<u8>(COPIED_BYTES)?;
        let mut target = self.device.alloc_zeros::<u8>(COPIED_BYTES)?;
        self.median_seconds(1, &mut |_| self.device.memcpy_dtod(&source, &mut target))
    }
}
