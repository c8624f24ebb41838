//! Times launches by CUDA events, and prints them beside the bandwidth of the device.

use std::cell::RefCell;
use std::time::Instant;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute, CUevent_flags};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice};
use candle_core::{CudaDevice, Result};

const SAMPLES: usize = 30;
/// What a device's memory is measured with: far more than an L2 holds.
const COPIED_BYTES: usize = 1 << 30;
/// How much of the device's free memory inputs may take.
const SHARE_OF_MEMORY: f64 = 0.6;
/// Beyond so many copies a sample takes longer than it says more.
const MOST_COPIES: usize = 64;
/// Launches of a warm sample.
const WARM_LAUNCHES: usize = 10;
/// The host takes longer at one time than at another.
const HEAD_START: f64 = 1.5;
/// Steps of a sample by the host's clock, and samples.
const STEPS: usize = 20;
const HOST_SAMPLES: usize = 5;

pub struct Timer {
    pub device: CudaDevice,
    l2_bytes: usize,
    free_bytes: usize,
    source: CudaSlice<u8>,
    target: RefCell<CudaSlice<u8>>,
    copy_seconds: f64,
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
        let source = device.alloc_zeros(COPIED_BYTES)?;
        let target = RefCell::new(device.alloc_zeros(COPIED_BYTES)?);
        let (free_bytes, _) = context.mem_get_info().w()?;
        let mut timer = Self {
            device: device.clone(),
            l2_bytes: l2_bytes.max(0) as usize,
            free_bytes,
            source,
            target,
            // Until it is known, one copy is head start enough for another.
            copy_seconds: f64::INFINITY,
        };
        timer.copy_seconds = timer.median_seconds(0, 1, &mut |_| timer.copy())?;
        Ok(timer)
    }

    /// Bytes a second of a copy, which reads and writes.
    pub fn bandwidth(&self) -> f64 {
        2.0 * COPIED_BYTES as f64 / self.copy_seconds
    }

    /// How many copies of the inputs a launch needs so that it finds none of them in the L2.
    pub fn copies(&self, moved: &Moved) -> usize {
        let wanted = 1 + (2.0 * self.l2_bytes as f64 / moved.touched).ceil() as usize;
        let room = (SHARE_OF_MEMORY * self.free_bytes as f64 / moved.held) as usize;
        wanted.min(room).clamp(1, MOST_COPIES)
    }

    pub fn print_machine(&self) -> Result<()> {
        let name =
            (self.device.cuda_stream().context().name()).unwrap_or_else(|error| error.to_string());
        println!(
            "{name}: a copy moves {:.0} GB/s; L2 {:.0} MB; two events with nothing between them are {:.2} µs apart",
            self.bandwidth() / 1e9,
            self.l2_bytes as f64 / 1e6,
            1e6 * self.median_seconds(0, 1, &mut |_| Ok(()))?
        );
        Ok(())
    }

    pub fn print_header(&self) {
        println!(
            "\n| {:<46} | {:>9} | {:>9} | {:>8} | {:>7} | copies |",
            "kernel, cold", "µs", "least MB", "GB/s", "of copy"
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
        let seconds = self.median_seconds(0, copies, &mut launch)?;
        let rate = moved.least / seconds;
        println!(
            "| {name:<46} | {:>9.2} | {:>9.3} | {:>8.1} | {:>5.1} % | {copies:>6} |",
            seconds * 1e6,
            moved.least / 1e6,
            rate / 1e9,
            100.0 * rate / self.bandwidth(),
        );
        Ok(())
    }

    /// Seconds of the device for a launch that finds none of its inputs in the L2, and as many as two
    /// events take (`print_machine`).
    pub fn cold_seconds(&self, mut launch: impl FnMut() -> Result<()>) -> Result<f64> {
        self.median_seconds(0, 1, &mut |_| launch())
    }

    /// Seconds of the device for a launch after launch on the same inputs, of which the L2 holds what
    /// it can.
    pub fn warm_seconds(&self, mut launch: impl FnMut() -> Result<()>) -> Result<f64> {
        self.median_seconds(1, WARM_LAUNCHES, &mut |_| launch())
    }

    /// Seconds by the host's clock for a step after step, which is the host's time where that is the
    /// longer and the device's where not.
    pub fn seconds_of_host(&self, mut step: impl FnMut() -> Result<()>) -> Result<f64> {
        let mut sample = || {
            self.device.cuda_stream().synchronize().w()?;
            let start = Instant::now();
            (0..STEPS).try_for_each(|_| step())?;
            self.device.cuda_stream().synchronize().w()?;
            Ok(start.elapsed().as_secs_f64() / STEPS as f64)
        };
        Ok(median(
            (0..HOST_SAMPLES).map(|_| sample()).collect::<Result<_>>()?,
        ))
    }

    /// Seconds of the device for one launch: the median over samples of `times` launches, after
    /// `before` that are not timed. The copy that gives the host its head start sweeps the L2.
    fn median_seconds(
        &self,
        before: usize,
        times: usize,
        launch: &mut impl FnMut(usize) -> Result<()>,
    ) -> Result<f64> {
        let mut issue =
            |launches: std::ops::Range<usize>| launches.into_iter().try_for_each(&mut *launch);
        // The first loads code.
        issue(0..before + times)?;
        self.device.cuda_stream().synchronize().w()?;
        let start = Instant::now();
        issue(0..before + times)?;
        let head_start = HEAD_START * start.elapsed().as_secs_f64();
        let copies = 1 + (head_start / self.copy_seconds) as usize;
        let mut seconds = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            (0..copies).try_for_each(|_| self.copy())?;
            issue(0..before)?;
            let start = self.event()?;
            issue(before..before + times)?;
            let elapsed = start.elapsed_ms(&self.event()?).w()?;
            seconds.push(f64::from(elapsed) / 1e3 / times as f64);
        }
        Ok(median(seconds))
    }

    fn event(&self) -> Result<CudaEvent> {
        let timed = CUevent_flags::CU_EVENT_DEFAULT;
        self.device.cuda_stream().record_event(Some(timed)).w()
    }

    fn copy(&self) -> Result<()> {
        (self.device).memcpy_dtod(&self.source, &mut *self.target.borrow_mut())
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
