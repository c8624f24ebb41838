//! Ranks that a launcher of MPI started.

use ::mpi::{
    Threading, datatype::PartitionMut, environment::Universe, topology::SimpleCommunicator,
    traits::*,
};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor, WithDType};

use super::Exchange;

/// Number of values that are summed together. MPI counts them in 31 bits, and four buffers of this length are held.
const LARGEST_MESSAGE: usize = 1 << 20;

/// The ranks of MPI's world. MPI ends when this is dropped.
pub struct Mpi {
    world: SimpleCommunicator,
    /// The ranks' GPUs, once a tensor on one of them was summed.
    #[cfg(feature = "nccl")]
    gpus: std::cell::OnceCell<candle_core::cuda_backend::cudarc::nccl::safe::Comm>,
    _universe: Universe,
}

impl Mpi {
    /// Joins the other ranks. Only the thread that calls this may use what it returns.
    ///
    /// # Errors
    /// Where MPI was initialised before, or cannot be called by one thread of several.
    pub fn initialize() -> Result<Self> {
        let (universe, threading) = ::mpi::initialize_with_threading(Threading::Funneled)
            .context("MPI was initialised before")?;
        ensure!(
            threading >= Threading::Funneled,
            "this MPI supports {threading:?} threads, and msl has several"
        );
        Ok(Self {
            world: universe.world(),
            #[cfg(feature = "nccl")]
            gpus: std::cell::OnceCell::new(),
            _universe: universe,
        })
    }

    /// Adds up in the order of the ranks, which no reduction of MPI promises: each rank gets one part of the values from
    /// all ranks, adds them up, and gives the sums to all. Of n values 2n(size − 1)/size travel to and from each rank.
    fn sum_in_order<T: WithDType + Equivalence + Default>(&self, values: &[T]) -> Vec<T> {
        let mut all_sums = Vec::with_capacity(values.len());
        for values in values.chunks(LARGEST_MESSAGE) {
            let part = values.len().div_ceil(self.size());
            let mut sent = values.to_vec();
            sent.resize(part * self.size(), T::default());
            let mut received = vec![T::default(); sent.len()];
            self.world.all_to_all_into(&sent[..], &mut received[..]);
            let (sums, terms) = received.split_at_mut(part);
            for term in terms.chunks(part) {
                for (sum, &term) in sums.iter_mut().zip(term) {
                    *sum += term;
                }
            }
            self.world.all_gather_into(&*sums, &mut sent[..]);
            all_sums.extend_from_slice(&sent[..values.len()]);
        }
        all_sums
    }
}

impl Drop for Mpi {
    /// A rank that panics would wait for the others to end with it, and they for its part of what they do.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort(101);
        }
    }
}

impl Exchange for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn sum(&self, values: &Tensor) -> Result<Tensor> {
        let device = values.device();
        #[cfg(feature = "nccl")]
        if let candle_core::Device::Cuda(gpu) = device {
            let communicator = match self.gpus.get() {
                Some(communicator) => communicator,
                None => {
                    let joined = super::nccl::join(self, gpu)?;
                    self.gpus.get_or_init(|| joined)
                }
            };
            return super::nccl::sum(communicator, values);
        }
        let count = values.dim(0)?;
        let sums = match values.dtype() {
            DType::F64 => {
                Tensor::from_vec(self.sum_in_order(&values.to_vec1::<f64>()?), count, device)
            }
            _ => Tensor::from_vec(self.sum_in_order(&values.to_vec1::<f32>()?), count, device),
        };
        Ok(sums?)
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        // One byte more, because the address of an empty slice may be the one that means "in place" to MPI.
        let sent = [bytes, &[0]].concat();
        let length = i32::try_from(sent.len()).with_context(|| {
            format!(
                "{} bytes are more than one message of MPI holds",
                bytes.len()
            )
        })?;
        let mut lengths = vec![0i32; self.size()];
        self.world.all_gather_into(&length, &mut lengths[..]);
        let mut begins = Vec::with_capacity(lengths.len());
        let mut end = 0i32;
        for &length in &lengths {
            begins.push(end);
            end = (end.checked_add(length))
                .context("the ranks gave more than 2^31 bytes together")?;
        }
        let mut received = vec![0u8; end as usize];
        let mut parts = PartitionMut::new(&mut received[..], &lengths[..], &begins[..]);
        self.world.all_gather_varcount_into(&sent[..], &mut parts);
        let parts = begins.iter().zip(&lengths);
        Ok(parts
            .map(|(&begin, &length)| received[begin as usize..][..length as usize - 1].to_vec())
            .collect())
    }

    fn barrier(&self) -> Result<()> {
        self.world.barrier();
        Ok(())
    }

    fn abort(&self, status: u8) {
        if self.size() > 1 {
            self.world.abort(i32::from(status));
        }
    }
}
