//! The kernels over logits, on the benchmark's batch.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Device, Result, Storage, Tensor};
use candle_trie::cuda::{Buffers, Executor};
use candle_trie::launch::{
    DenseBackward, DenseBackwardBuffers, DenseForward, DenseForwardBuffers, DenseInputs, DenseRows,
    GradientView, TemperaturePlan, TokenSetsView,
};
use candle_trie::{AdaptiveStrategy, MaskedSoftmaxLoss, Scope, Statistics, Temperature, TokenSets};
use half::{bf16, f16};

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
    sets: Option<[CudaSlice<u32>; 2]>,
    logits: Vec<CudaSlice<T>>,
}

impl<'a, T: Number> Batch<'a, T> {
    fn new(timer: &'a Timer, shape: &'a Shape) -> Result<Self> {
        let device = &timer.device;
        let sets = match shape.sets.as_raw() {
            Some((offsets, tokens)) => {
                Some([device.clone_htod(offsets)?, device.clone_htod(tokens)?])
            }
            None => None,
        };
        let mut batch = Self {
            device,
            executor: Executor::new(device)?,
            shape,
            sets,
            logits: Vec::new(),
        };
        let elements = shape.rows.positions() * WIDTH;
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
        let tokens = match self.sets {
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
        let loss = MaskedSoftmaxLoss::new(&self.shape.sets, temperature.clone())?;
        let rows = loss.dense_rows(&self.shape.rows)?;
        let temperature = rows.next(temperature)?;
        let mut pass = Pass::new(self, &rows, temperature, makes == Makes::LossAndGradient)?;
        pass.forward(0)?;
        timer.print(name, &self.moved(makes), |copy| match makes {
            Makes::Gradient => pass.backward(copy),
            _ => pass.forward(copy),
        })
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

/// One way to run the batch, and the memory that it needs.
struct Pass<'a, T> {
    batch: &'a Batch<'a, T>,
    rows: &'a DenseRows,
    forward: DenseForward<'a>,
    backward: DenseBackward<'a>,
    with_gradient: bool,
    /// The rows, and behind them the idle positions.
    words: CudaSlice<u32>,
    gradient: CudaSlice<T>,
    softmaxes: CudaSlice<u8>,
    loss: CudaSlice<f32>,
    partials: CudaSlice<f64>,
    statistics: CudaSlice<f64>,
    temperature: CudaSlice<f64>,
    arrived: CudaSlice<u32>,
    upstream: CudaSlice<f32>,
}

impl<'a, T: Number> Pass<'a, T> {
    fn new(
        batch: &'a Batch<'a, T>,
        rows: &'a DenseRows,
        temperature: TemperaturePlan,
        with_gradient: bool,
    ) -> Result<Self> {
        let (device, limits) = (batch.device, batch.executor.limits());
        let forward =
            DenseForward::new(rows, T::ELEMENT, WIDTH, temperature, with_gradient, limits)?;
        let backward = DenseBackward::new(rows, T::ELEMENT, WIDTH, limits)?;
        let words = [bytemuck::cast_slice(&rows.rows), &rows.idle].concat();
        Ok(Self {
            batch,
            rows,
            backward: backward.expect("positions"),
            with_gradient,
            words: device.clone_htod(&words)?,
            gradient: device.alloc_zeros(batch.logits[0].len())?,
            softmaxes: device.alloc_zeros(rows.counting() * DenseRows::SOFTMAX_BYTES)?,
            loss: device.alloc_zeros(rows.losses())?,
            partials: device.alloc_zeros(forward.partials())?,
            statistics: device.alloc_zeros(Statistics::LENGTH)?,
            temperature: device.alloc_zeros(1)?,
            arrived: device.alloc_zeros(1)?,
            upstream: device.clone_htod(&[1.0])?,
            forward,
        })
    }

    fn forward(&mut self, copy: usize) -> Result<()> {
        let executor = &self.batch.executor;
        let mut buffers = Buffers::new();
        let inputs = inputs(self.batch, self.rows, &self.words, copy, &mut buffers);
        let gradient = (self.with_gradient).then(|| GradientView {
            address: buffers.write(executor, &mut self.gradient),
            row_stride: WIDTH as u64,
        });
        let outputs = DenseForwardBuffers {
            gradient,
            softmaxes: buffers.write(executor, &mut self.softmaxes),
            loss: buffers.write(executor, &mut self.loss),
            partials: buffers.write(executor, &mut self.partials),
            statistics: buffers.write(executor, &mut self.statistics),
            temperature: buffers.write(executor, &mut self.temperature),
            previous: None,
            arrived: buffers.write(executor, &mut self.arrived),
        };
        let launch = self.forward.launch(&inputs, &outputs);
        // SAFETY: the parameters are the plan's, and the buffers have the sizes that it asks for.
        unsafe { executor.launch(&launch, buffers) }?;
        Ok(())
    }

    fn backward(&mut self, copy: usize) -> Result<()> {
        let executor = &self.batch.executor;
        let mut buffers = Buffers::new();
        let inputs = inputs(self.batch, self.rows, &self.words, copy, &mut buffers);
        let outputs = DenseBackwardBuffers {
            gradient: GradientView {
                address: buffers.write(executor, &mut self.gradient),
                row_stride: WIDTH as u64,
            },
            softmaxes: buffers.read(executor, &self.softmaxes),
            temperature: buffers.read(executor, &self.temperature),
            upstream: buffers.read(executor, &self.upstream),
        };
        let launch = self.backward.launch(&inputs, &outputs);
        // SAFETY: as in `forward`.
        unsafe { executor.launch(&launch, buffers) }?;
        Ok(())
    }
}

fn inputs<'b, T: Number>(
    batch: &'b Batch<T>,
    rows: &DenseRows,
    words: &'b CudaSlice<u32>,
    copy: usize,
    buffers: &mut Buffers<'b>,
) -> DenseInputs {
    let executor = &batch.executor;
    let words = buffers.read(executor, words);
    let mut sets =
        |index: usize| (batch.sets.as_ref()).and_then(|sets| buffers.read(executor, &sets[index]));
    let sets = TokenSetsView {
        offsets: sets(0),
        tokens: sets(1),
        vocabulary: u64::from(batch.shape.sets.max_token()) + 1,
    };
    DenseInputs {
        logits: buffers.read(executor, &batch.logits[copy]),
        row_stride: WIDTH as u64,
        rows: words,
        idle: words.map(|words| words.offset(size_of_val(&rows.rows[..]) as u64)),
        sets,
    }
}
