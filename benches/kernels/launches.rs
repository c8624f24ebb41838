//! The launches of a plan, kept to be issued again: all together, or each by itself.

use bytemuck::Pod;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Result, Storage, Tensor};
use candle_trie::Statistics;
use candle_trie::TokenSets;
use candle_trie::cuda::Executor;
use candle_trie::launch::{
    DeviceMatrix, DevicePtr, ForwardResults, Launch, Lifetime, LinearGradients, LinearPlan,
    LinearRows, LinearTensors, Stream, TemperaturePlan, TokenSetsView, Upstream,
};

use super::number::Number;

/// The inputs that launches of the loss over hidden states are planned and issued with.
pub struct Inputs<'a> {
    pub device: &'a CudaDevice,
    pub executor: &'a Executor,
    pub sets: &'a TokenSets,
    /// `[N, H]`, contiguous.
    pub hidden: &'a Tensor,
    /// `[V, H]`, contiguous.
    pub head: &'a Tensor,
}

/// A stream that keeps what is launched, and the memory that the launches use.
pub struct Launches<'a> {
    device: &'a CudaDevice,
    executor: &'a Executor,
    recorded: Vec<(&'static str, Issue<'a>)>,
    /// The memory that addresses in the launches are of. Of the loss over hidden states, the hidden gradient comes first.
    held: Vec<CudaSlice<u8>>,
}

type Issue<'a> = Box<dyn Fn() -> candle_trie::Result<()> + 'a>;

impl<'a> Launches<'a> {
    pub fn new(device: &'a CudaDevice, executor: &'a Executor) -> Self {
        Self {
            device,
            executor,
            recorded: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Returns the launches of the loss over hidden states with these gradients, in their order: the forward pass, and those that
    /// compute the gradients of hidden states and head for an upstream gradient of 1.
    pub fn linear<T: Number>(
        inputs: &Inputs<'a>,
        rows: LinearRows,
        temperature: TemperaturePlan,
        gradients: LinearGradients,
    ) -> Result<Self> {
        let mut launches = Self::new(inputs.device, inputs.executor);
        let (width, element) = (inputs.hidden.dim(1)?, size_of::<T>());
        let hidden_gradient = launches.zeros(rows.totals.positions() * width * element)?;
        let matrix = |address| DeviceMatrix {
            address: Some(address),
            row_stride: width as u64,
        };
        let tensors = LinearTensors {
            hidden: matrix(launches.address_of::<T>(inputs.hidden)?),
            head: matrix(launches.address_of::<T>(inputs.head)?),
            base: None,
            bias: None,
            sets: launches.sets(inputs.sets)?,
            previous: None,
        };
        let losses = rows.totals.losses();
        let results = launches.results(losses)?;
        let upstream = launches.upstream(losses, &results)?;
        let (limits, most_scores) = (inputs.executor.limits(), LinearPlan::MOST_SCORES);
        let plan = LinearPlan::new(rows, T::ELEMENT, width, gradients, limits, most_scores)?;
        let direct = (gradients == LinearGradients::Direct).then_some(hidden_gradient);
        // SAFETY: the rows are those of the sets, whose tokens the head has; what is recorded is issued while
        // `held` and the tensors of `inputs` are there.
        unsafe {
            let saved =
                plan.issue_forward(&mut launches, &tensors, temperature, direct, &results)?;
            let of_hidden = matches!(gradients, LinearGradients::Hidden | LinearGradients::All(_));
            if of_hidden {
                plan.issue_hidden_gradient(&mut launches, &saved, &upstream, hidden_gradient)?;
            }
            if let LinearGradients::All(_) = gradients {
                let of_head = Some(launches.zeros(inputs.head.elem_count() * element)?);
                plan.issue_head_gradient(&mut launches, &saved, &upstream, [of_head, None])?;
            }
        }
        Ok(launches)
    }

    /// Uploads token sets.
    pub fn sets(&mut self, sets: &TokenSets) -> Result<TokenSetsView> {
        let (offsets, tokens) = match sets.as_raw() {
            Some((offsets, tokens)) => (self.uploaded(offsets)?, self.uploaded(tokens)?),
            None => (None, None),
        };
        Ok(TokenSetsView {
            offsets,
            tokens,
            vocabulary: u64::from(sets.max_token()) + 1,
        })
    }

    /// Allocates the results of a forward pass.
    pub fn results(&mut self, losses: usize) -> Result<ForwardResults> {
        Ok(ForwardResults {
            loss: self.zeros(losses * size_of::<f32>())?,
            statistics: self.zeros((Statistics::LENGTH + 1) * size_of::<f64>())?,
            temperature: self.zeros(size_of::<f64>())?,
        })
    }

    /// Uploads an upstream gradient of 1.
    pub fn upstream(&mut self, losses: usize, results: &ForwardResults) -> Result<Upstream> {
        let ones = vec![1f32.to_bits(); losses];
        Ok(Upstream {
            loss: self.uploaded(&ones)?.expect("a loss"),
            temperature: results.temperature,
        })
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
        let bytes: Vec<u8> = self.device.clone_dtoh(&self.held[0])?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    pub fn zeros(&mut self, bytes: usize) -> candle_trie::Result<DevicePtr> {
        // A device has no buffer without elements.
        let zeros = self.device.alloc_zeros::<u8>(bytes.max(1))?;
        Ok(self.hold(zeros))
    }

    fn uploaded(&mut self, words: &[u32]) -> candle_trie::Result<Option<DevicePtr>> {
        if words.is_empty() {
            return Ok(None);
        }
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let uploaded = self.device.clone_htod(bytes)?;
        Ok(Some(self.hold(uploaded)))
    }

    fn hold(&mut self, slice: CudaSlice<u8>) -> DevicePtr {
        let address = self.executor.address(&slice);
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
        let address = self.executor.address(&elements);
        address.ok_or_else(|| candle_core::Error::msg("a tensor without elements"))
    }
}

impl Stream for Launches<'_> {
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
        self.executor.resident_blocks(launch).map(Some)
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> candle_trie::Result<()> {
        let (executor, launch) = (self.executor, *launch);
        // SAFETY: the caller's promise, which `Launches` keeps.
        let issue = move || unsafe { executor.launch(&launch) };
        self.recorded.push((launch.kernel, Box::new(issue)));
        Ok(())
    }
}
