//! The launches and products of the linear operation, each to be issued by itself, over memory that is
//! there.

use std::marker::PhantomData;

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Result, Storage, Tensor};
use candle_trie::cuda::{Buffers, Executor};
use candle_trie::launch::{
    LinearBackward, LinearBackwardBuffers, LinearForward, LinearForwardBuffers, LinearGather,
    LinearInputs, LinearRows, TemperaturePlan, TokenSetsView,
};
use candle_trie::{Statistics, TokenSets};

use super::number::Number;

/// What the operation issues, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Gather,
    Scores,
    Statistics,
    Forward,
    Gradients,
    Backward,
}

impl Part {
    pub const ALL: [Self; 6] = [
        Self::Gather,
        Self::Scores,
        Self::Statistics,
        Self::Forward,
        Self::Gradients,
        Self::Backward,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Gather => "linear_gather",
            Self::Scores => "products: scores",
            Self::Statistics => "linear_statistics",
            Self::Forward => "linear_forward",
            Self::Gradients => "products: gradients",
            Self::Backward => "linear_backward",
        }
    }
}

/// Device memory that is held for as long as its addresses are used, all of it zeros at first.
struct Memory<'a> {
    device: &'a CudaDevice,
    executor: &'a Executor,
    held: Vec<CudaSlice<u8>>,
}

pub struct Launches<'a, T> {
    executor: &'a Executor,
    forward: LinearForward<'a>,
    gather: Option<LinearGather<'a>>,
    backward: LinearBackward<'a>,
    inputs: LinearInputs,
    buffers: LinearForwardBuffers,
    left: LinearBackwardBuffers,
    /// The hidden gradient is the last.
    memory: Memory<'a>,
    /// The others that addresses are of.
    _tensors: Vec<Tensor>,
    of_type: PhantomData<T>,
}

impl<'a, T: Number> Launches<'a, T> {
    /// `hidden` `[N, H]` and `head` `[V, H]` are contiguous. `frozen` has for each of
    /// [`LinearRows::grouped_sets`] the head rows that need no gathering.
    pub fn new(
        device: &'a CudaDevice,
        executor: &'a Executor,
        (rows, sets): (&'a LinearRows, &TokenSets),
        temperature: TemperaturePlan,
        (hidden, head): (&Tensor, &Tensor),
        frozen: Vec<Option<Tensor>>,
    ) -> Result<Self> {
        let (width, limits) = (hidden.dim(1)?, executor.limits());
        let forward = LinearForward::new(rows, T::ELEMENT, width, temperature, true, limits)?;
        let backward = LinearBackward::new(rows, T::ELEMENT, width, limits)?.expect("positions");
        let mut memory = Memory {
            device,
            executor,
            held: Vec::new(),
        };
        let address = |tensor: &Tensor| address_of::<T>(executor, tensor);
        let words = [
            bytemuck::cast_slice(rows.rows()),
            rows.idle(),
            rows.gathered(),
        ]
        .concat();
        let words = memory.upload(&words)?;
        let idle = words + size_of_val(rows.rows()) as u64;
        let (offsets, tokens) = sets.as_raw().expect("listed sets");
        let inputs = LinearInputs {
            hidden: address(hidden)?,
            hidden_stride: width as u64,
            head: address(head)?,
            head_stride: width as u64,
            bias: 0,
            rows: words,
            idle,
            gathered: idle + size_of_val(rows.idle()) as u64,
            sets: TokenSetsView {
                offsets: memory.upload(offsets)?,
                tokens: memory.upload(tokens)?,
                vocabulary: u64::from(sets.max_token()) + 1,
            },
        };
        let buffers = LinearForwardBuffers {
            group_hidden: memory.room::<T>(rows.grouped() * width)?,
            group_head: memory.room::<T>(rows.gathered_head_rows() * width)?,
            frozen: (frozen.iter())
                .map(|rows| rows.as_ref().map_or(Ok(0), address))
                .collect::<Result<_>>()?,
            scores: memory.room::<f32>(forward.scores())?,
            errors: memory.room::<T>(forward.errors())?,
            gradient: memory.room::<f32>(forward.gradient())?,
            loss: memory.room::<f32>(rows.losses())?,
            partials: memory.room::<f64>(forward.partials())?,
            statistics: memory.room::<f64>(Statistics::LENGTH)?,
            temperature: memory.room::<f64>(1)?,
            previous: 0,
            arrived: memory.room::<u32>(forward.arrived())?,
        };
        let left = LinearBackwardBuffers {
            unscaled: buffers.gradient,
            temperature: buffers.temperature,
            upstream: memory.upload(&[1f32.to_bits()])?,
            gradient: memory.room::<T>(rows.positions() * width)?,
        };
        Ok(Self {
            executor,
            forward,
            gather: LinearGather::new(rows, T::ELEMENT, width, limits)?,
            backward,
            inputs,
            buffers,
            left,
            memory,
            _tensors: [hidden.clone(), head.clone()]
                .into_iter()
                .chain(frozen.into_iter().flatten())
                .collect(),
            of_type: PhantomData,
        })
    }

    pub fn issue_all(&self) -> Result<()> {
        Part::ALL.into_iter().try_for_each(|part| self.issue(part))
    }

    /// Issues a part; after all that come before it have been, it may be repeated.
    pub fn issue(&self, part: Part) -> Result<()> {
        let (executor, inputs, buffers) = (self.executor, &self.inputs, &self.buffers);
        // SAFETY: the parameters are the plans', and `memory` and `_tensors` hold what they point
        // to, as large as the plans ask for.
        unsafe {
            match part {
                Part::Gather => {
                    if let Some(gather) = &self.gather {
                        let launch =
                            gather.launch(inputs, buffers.group_hidden, buffers.group_head);
                        executor.launch(&launch, Buffers::new())?;
                    }
                }
                Part::Scores => {
                    for product in self.forward.score_products(buffers) {
                        executor.multiply(&product)?;
                    }
                }
                Part::Statistics => {
                    if let Some(launch) = self.forward.statistics_launch(inputs, buffers) {
                        executor.launch(&launch, Buffers::new())?;
                    }
                }
                Part::Forward => {
                    executor.launch(&self.forward.launch(inputs, buffers), Buffers::new())?;
                }
                Part::Gradients => {
                    for product in self.forward.gradient_products(buffers) {
                        executor.multiply(&product)?;
                    }
                }
                Part::Backward => {
                    let launch = self.backward.launch(inputs.rows, inputs.idle, &self.left);
                    executor.launch(&launch, Buffers::new())?;
                }
            }
        }
        Ok(())
    }

    /// The hidden gradient `[N·H]`.
    pub fn gradient(&self) -> Result<Vec<T>> {
        let gradient = self.memory.held.last().expect("a gradient");
        let bytes: Vec<u8> = self.memory.device.clone_dtoh(gradient)?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    /// The bytes of all that is neither hidden states nor head nor hidden gradient.
    pub fn bytes(&self) -> usize {
        let held: usize = self.memory.held.iter().map(|held| held.len()).sum();
        held - self.memory.held.last().map_or(0, |gradient| gradient.len())
    }
}

impl Memory<'_> {
    /// The address of room for `length` elements.
    fn room<T>(&mut self, length: usize) -> Result<u64> {
        // A device has no buffer without elements.
        let bytes = (length * size_of::<T>()).max(1);
        let room = self.device.alloc_zeros(bytes)?;
        Ok(self.hold(room))
    }

    fn upload(&mut self, words: &[u32]) -> Result<u64> {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let uploaded = self.device.clone_htod(bytes)?;
        Ok(self.hold(uploaded))
    }

    fn hold(&mut self, slice: CudaSlice<u8>) -> u64 {
        let address = Buffers::new().read(self.executor, &slice);
        self.held.push(slice);
        address
    }
}

fn address_of<T: Number>(executor: &Executor, tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("a tensor on the device is needed");
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a contiguous tensor is needed");
    };
    let elements = storage.as_cuda_slice::<T>()?.slice(start..end);
    Ok(Buffers::new().read(executor, &elements))
}
