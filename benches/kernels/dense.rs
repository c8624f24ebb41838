//! The kernels over logits, on the benchmark's batch.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Device, Result, Storage, Tensor};
use candle_trie::cuda::Executor;
use candle_trie::launch::{DensePlan, DenseTensors, DeviceMatrix};
use candle_trie::{AdaptiveStrategy, MaskedSoftmaxLoss, Scope, Temperature, TokenSets};
use half::{bf16, f16};

use super::launches::Launches;
use super::number::Number;
use super::timer::{Moved, Timer};
use crate::support::{SMOLLM2, Shape, uniform};

const WIDTH: usize = SMOLLM2.vocabulary;

/// What a launch makes.
#[derive(Clone, Copy, PartialEq)]
enum Makes {
    Loss,
    LossAndGradient,
    /// By the backward pass.
    Gradient,
}

pub fn print(timer: &Timer) -> Result<()> {
    timer.print_header();
    let shape = Shape::books();
    let whole = Shape {
        sets: TokenSets::whole_vocabulary(WIDTH)?,
        rows: shape.rows.clone(),
    };
    for (name, shape) in [("MSL", &shape), ("LML", &whole)] {
        print_dtype::<bf16>(timer, name, shape)?;
        print_dtype::<f16>(timer, name, shape)?;
        print_dtype::<f32>(timer, name, shape)?;
    }
    Ok(())
}

fn print_dtype<T: Number>(timer: &Timer, name: &str, shape: &Shape) -> Result<()> {
    let strategy = AdaptiveStrategy {
        scope: Scope::Branching,
        ..AdaptiveStrategy::default()
    };
    let batch = Batch::<T>::new(timer, shape)?;
    let (fixed, adaptive) = (Temperature::fixed(1.5), Temperature::from(strategy));
    for (what, temperature, makes) in [
        ("loss, τ given", &fixed, Makes::Loss),
        ("loss, τ adaptive", &adaptive, Makes::Loss),
        ("loss and gradient, τ given", &fixed, Makes::LossAndGradient),
        (
            "loss and gradient, τ adaptive",
            &adaptive,
            Makes::LossAndGradient,
        ),
        ("backward", &fixed, Makes::Gradient),
    ] {
        let name = format!("{name} {}, {what}", T::NAME);
        batch.print(timer, &name, temperature, makes)?;
    }
    Ok(())
}

/// A batch on the device, with as many copies of the logits as the timer asks for.
struct Batch<'a, T> {
    device: &'a CudaDevice,
    executor: Executor,
    shape: &'a Shape,
    logits: Vec<CudaSlice<T>>,
    /// One for all copies.
    gradient: CudaSlice<T>,
}

impl<'a, T: Number> Batch<'a, T> {
    fn new(timer: &'a Timer, shape: &'a Shape) -> Result<Self> {
        let device = &timer.device;
        let elements = shape.rows.positions() * WIDTH;
        let mut batch = Self {
            device,
            executor: Executor::new(device)?,
            shape,
            logits: Vec::new(),
            gradient: device.alloc_zeros(elements)?,
        };
        let logits = Tensor::from_vec(uniform(elements, 6.0, 1), elements, &Device::Cpu)?;
        let logits = logits.to_device(&Device::Cuda(device.clone()))?;
        let logits = logits.to_dtype(T::DTYPE)?;
        let (storage, _) = logits.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            unreachable!("a tensor on the device")
        };
        let logits = storage.as_cuda_slice::<T>()?;
        let copies = timer.copies(&batch.moved(Makes::Loss));
        for _ in 0..copies {
            batch.logits.push(logits.try_clone().w()?);
        }
        Ok(batch)
    }

    fn moved(&self, makes: Makes) -> Moved {
        const SECTOR: usize = 32;
        let (shape, bytes) = (self.shape, size_of::<T>());
        let logits = shape.branching_logits();
        let all = shape.rows.positions() * WIDTH * bytes;
        let tokens = match shape.sets.as_raw() {
            Some(_) => size_of::<u32>() * used_tokens(shape),
            None => 0,
        };
        let gradient = if makes == Makes::Loss { 0 } else { all };
        Moved {
            least: (logits * bytes + tokens + gradient) as f64,
            touched: (all.min(logits * SECTOR) + gradient) as f64,
            held: all as f64,
        }
    }

    fn print(
        &self,
        timer: &Timer,
        name: &str,
        temperature: &Temperature,
        makes: Makes,
    ) -> Result<()> {
        let launches = (0..self.logits.len())
            .map(|copy| self.launches(temperature, makes, copy))
            .collect::<Result<Vec<_>>>()?;
        launches.iter().try_for_each(Launches::issue)?;
        let kernel = match makes {
            Makes::Gradient => "dense_backward",
            _ => "dense_",
        };
        timer.print(name, &self.moved(makes), |copy| {
            launches[copy].issue_kernel(kernel)
        })
    }

    /// Returns the launches over one copy of the logits.
    fn launches(
        &self,
        temperature: &Temperature,
        makes: Makes,
        copy: usize,
    ) -> Result<Launches<'_>> {
        let mut launches = Launches::new(self.device, &self.executor);
        let loss = MaskedSoftmaxLoss::new(&self.shape.sets, temperature.clone())?;
        let rows = loss.dense_rows(&self.shape.rows)?;
        let plan = DensePlan::new(rows, T::ELEMENT, WIDTH, self.executor.limits())?;
        let totals = &plan.rows().totals;
        let matrix = |address| DeviceMatrix {
            address,
            row_stride: WIDTH as u64,
        };
        let tensors = DenseTensors {
            logits: matrix(self.executor.address(&self.logits[copy])),
            sets: launches.sets(&self.shape.sets)?,
            previous: None,
        };
        let gradient = matrix(self.executor.address(&self.gradient));
        let fused = (makes == Makes::LossAndGradient).then_some(gradient);
        let results = launches.results(totals.losses())?;
        let upstream = launches.upstream(totals.losses(), &results)?;
        let temperature = totals.next(temperature)?;
        // SAFETY: the rows are those of the sets, whose tokens the logits have; what is recorded is issued while the
        // memory of `launches` and the logits are there.
        unsafe {
            let saved =
                plan.issue_forward(&mut launches, &tensors, temperature, fused, &results)?;
            if makes == Makes::Gradient {
                plan.issue_backward(&mut launches, &saved, &upstream, gradient)?;
            }
        }
        Ok(launches)
    }
}

/// The sizes of the branching sets that rows name, each set once.
fn used_tokens(shape: &Shape) -> usize {
    let mut used: Vec<u32> = shape.rows.as_slice().iter().map(|row| row.set).collect();
    used.sort_unstable();
    used.dedup();
    let sizes = used.iter().map(|&set| shape.set_size(set));
    sizes.filter(|&size| size > 1).sum()
}
