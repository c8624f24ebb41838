//! The launches of a pass over hidden states and a head, kept to be issued again: all together, or each by
//! itself.

use bytemuck::Pod;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Result, Storage, Tensor};
use candle_trie::cuda::{Buffers, Executor};
use candle_trie::launch::{
    DevicePtr, Launch, Lifetime, LinearGradients, LinearPass, LinearResults, LinearRows,
    LinearTensors, LinearUpstream, Queue, TemperaturePlan,
};
use candle_trie::{Statistics, TokenSets};

use super::number::Number;

/// What a pass is planned and issued with.
pub struct Inputs<'a> {
    pub device: &'a CudaDevice,
    pub executor: &'a Executor,
    pub sets: &'a TokenSets,
    /// `[N, H]`, contiguous.
    pub hidden: &'a Tensor,
    /// `[V, H]`, contiguous.
    pub head: &'a Tensor,
}

pub struct Launches<'a> {
    inputs: &'a Inputs<'a>,
    recorded: Vec<(&'static str, Issue<'a>)>,
    /// What addresses in the launches are of. The hidden gradient comes first.
    held: Vec<CudaSlice<u8>>,
}

type Issue<'a> = Box<dyn Fn() -> candle_trie::Result<()> + 'a>;

impl<'a> Launches<'a> {
    /// Those that a pass with these gradients issues, in that order: its own, and those that make the gradients of hidden states
    /// and head for an upstream gradient of 1.
    pub fn new<T: Number>(
        inputs: &'a Inputs<'a>,
        rows: LinearRows,
        temperature: TemperaturePlan,
        gradients: LinearGradients,
    ) -> Result<Self> {
        let mut launches = Self {
            inputs,
            recorded: Vec::new(),
            held: Vec::new(),
        };
        let (width, element) = (inputs.hidden.dim(1)?, size_of::<T>());
        let hidden_gradient = launches.zeros(rows.positions() * width * element)?;
        let tensors = LinearTensors {
            hidden: Some(launches.address_of::<T>(inputs.hidden)?),
            hidden_stride: width as u64,
            head: launches.address_of::<T>(inputs.head)?,
            head_stride: width as u64,
            bias: None,
            tokens: match inputs.sets.as_raw() {
                Some((_, tokens)) => launches.uploaded(tokens)?,
                None => None,
            },
            previous: None,
        };
        let results = LinearResults {
            loss: launches.zeros(rows.losses() * size_of::<f32>())?,
            statistics: launches.zeros(Statistics::LENGTH * size_of::<f64>())?,
            temperature: launches.zeros(size_of::<f64>())?,
            hidden_gradient: (gradients == LinearGradients::Direct).then_some(hidden_gradient),
        };
        let ones = vec![1f32.to_bits(); rows.losses()];
        let upstream = LinearUpstream {
            loss: launches.uploaded(&ones)?.expect("a loss"),
            temperature: results.temperature,
        };
        let (limits, most_scores) = (inputs.executor.limits(), LinearPass::MOST_SCORES);
        let pass = LinearPass::new(rows, T::ELEMENT, width, gradients, limits, most_scores)?;
        // SAFETY: the rows are those of the sets, whose tokens the head has; what is recorded is issued while
        // `held` and the tensors of `inputs` are there.
        unsafe {
            let forwarded = pass.forward(&mut launches, &tensors, temperature, &results)?;
            let of_hidden = matches!(gradients, LinearGradients::Hidden | LinearGradients::All(_));
            if of_hidden {
                pass.hidden_gradient(&mut launches, &forwarded, upstream, hidden_gradient)?;
            }
            if let LinearGradients::All(_) = gradients {
                let of_head = Some(launches.zeros(inputs.head.elem_count() * element)?);
                pass.head_gradient(&mut launches, &forwarded, upstream, [of_head, None])?;
            }
        }
        Ok(launches)
    }

    pub fn issue(&self) -> Result<()> {
        Ok(self.recorded.iter().try_for_each(|(_, issue)| issue())?)
    }

    /// Issues the launches of one kernel. Those before them must have been issued.
    pub fn issue_kernel(&self, kernel: &str) -> Result<()> {
        let mut of_kernel = (self.recorded.iter()).filter(|(name, _)| name.starts_with(kernel));
        Ok(of_kernel.try_for_each(|(_, issue)| issue())?)
    }

    /// The hidden gradient `[N·H]`.
    pub fn hidden_gradient<T: Number>(&self) -> Result<Vec<T>> {
        let bytes: Vec<u8> = self.inputs.device.clone_dtoh(&self.held[0])?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    fn zeros(&mut self, bytes: usize) -> candle_trie::Result<DevicePtr> {
        // A device has no buffer without elements.
        let zeros = self.inputs.device.alloc_zeros::<u8>(bytes.max(1))?;
        Ok(self.hold(zeros))
    }

    fn uploaded(&mut self, words: &[u32]) -> candle_trie::Result<Option<DevicePtr>> {
        if words.is_empty() {
            return Ok(None);
        }
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let uploaded = self.inputs.device.clone_htod(bytes)?;
        Ok(Some(self.hold(uploaded)))
    }

    fn hold(&mut self, slice: CudaSlice<u8>) -> DevicePtr {
        let address = Buffers::new().read(self.inputs.executor, &slice);
        self.held.push(slice);
        address.expect("a buffer with elements")
    }

    fn address_of<T: Number>(&self, tensor: &Tensor) -> Result<DevicePtr> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            candle_core::bail!("a tensor on the device is needed");
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a contiguous tensor is needed");
        };
        let elements = storage.as_cuda_slice::<T>()?.slice(start..end);
        let address = Buffers::new().read(self.inputs.executor, &elements);
        address.ok_or_else(|| candle_core::Error::msg("a tensor without elements"))
    }
}

/// Keeps what is launched.
impl Queue for Launches<'_> {
    type Error = candle_trie::Error;

    fn allocate<const N: usize>(
        &mut self,
        _: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> candle_trie::Result<[Option<DevicePtr>; N]> {
        let mut addresses = [None; N];
        for (address, (_, bytes)) in addresses.iter_mut().zip(parts) {
            if bytes > 0 {
                *address = Some(self.zeros(bytes)?);
            }
        }
        Ok(addresses)
    }

    fn upload<const N: usize>(
        &mut self,
        parts: [(&'static str, &[u32]); N],
    ) -> candle_trie::Result<[Option<DevicePtr>; N]> {
        let mut addresses = [None; N];
        for (address, (_, words)) in addresses.iter_mut().zip(parts) {
            *address = self.uploaded(words)?;
        }
        Ok(addresses)
    }

    fn resident_blocks<P: Pod>(&self, launch: &Launch<P>) -> candle_trie::Result<Option<u32>> {
        self.inputs.executor.resident_blocks(launch).map(Some)
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> candle_trie::Result<()> {
        let (executor, launch) = (self.inputs.executor, *launch);
        // SAFETY: the caller's promise, which `Launches` keeps.
        let issue = move || unsafe { executor.launch(&launch, Buffers::new()) };
        self.recorded.push((launch.kernel, Box::new(issue)));
        Ok(())
    }
}
