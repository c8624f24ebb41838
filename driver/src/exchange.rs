//! Processes that train or evaluate one model together, each with its share of every batch.

#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;

use anyhow::{Context, Result, anyhow, ensure};
use bytemuck::Pod;
use candle_core::Tensor;
use serde::{Serialize, de::DeserializeOwned};

/// A group of processes, called ranks, that make the same calls in the same order.
///
/// Every method waits until all ranks have called it. A rank that fails ends the others with [`abort`](Self::abort), or
/// they would wait for it forever.
pub trait Exchange {
    /// Returns the number of this process among the ranks, from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn size(&self) -> usize;

    /// Returns the sum over the ranks of a tensor `[n]` in f32 or f64, which has the same shape on each. The terms are
    /// added in the order of the ranks, so that every rank gets the same bits, and another run of as many ranks too.
    fn sum(&self, values: &Tensor) -> Result<Tensor>;

    /// Returns the bytes that each rank gave, in the order of the ranks.
    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Waits until every rank is here.
    fn barrier(&self) -> Result<()>;

    /// Ends the other ranks at once, whatever they do. It returns where there are none.
    fn abort(&self, status: u8);
}

/// One process by itself.
pub struct Alone;

impl Exchange for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, values: &Tensor) -> Result<Tensor> {
        Ok(values.clone())
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn abort(&self, _status: u8) {}
}

/// Returns the share of a rank: every `size`-th element, from the rank's own number on. Batches are sorted by length, so
/// that ranks get rows of like lengths.
pub fn share<'a, T>(exchange: &dyn Exchange, all: &'a [T]) -> impl Iterator<Item = &'a T> {
    all.iter().skip(exchange.rank()).step_by(exchange.size())
}

/// Returns the value that each rank gave, in the order of the ranks.
pub fn gather<T: Pod>(exchange: &dyn Exchange, value: &T) -> Result<Vec<T>> {
    let read = |(rank, bytes): (usize, Vec<u8>)| {
        bytemuck::try_pod_read_unaligned(&bytes).map_err(|_| {
            anyhow!(
                "rank {rank} gave {} bytes where rank {} gave {}: they do not run the same version of msl",
                bytes.len(),
                exchange.rank(),
                size_of::<T>()
            )
        })
    };
    let gathered = exchange.gather(bytemuck::bytes_of(value))?;
    gathered.into_iter().enumerate().map(read).collect()
}

/// Returns the value that each rank gave, in the order of the ranks. It travels as JSON, where no number may be infinite or
/// NaN.
pub fn gather_json<T: Serialize + DeserializeOwned>(
    exchange: &dyn Exchange,
    value: T,
) -> Result<Vec<T>> {
    if exchange.size() == 1 {
        return Ok(vec![value]);
    }
    let gathered = exchange.gather(&serde_json::to_vec(&value)?)?;
    let read = |bytes: &Vec<u8>| Ok(serde_json::from_slice(bytes)?);
    gathered.iter().map(read).collect()
}

/// Returns the ranks that this process was started as one of, by `mpirun`, `srun` or the like; itself alone otherwise.
///
/// # Errors
/// Returns an error where a launcher started several processes that would not know of each other: `msl` was built without the
/// feature `mpi`, or with another MPI than the launcher's.
pub fn open() -> Result<Box<dyn Exchange>> {
    let Some((launched, variable)) = launched()? else {
        return Ok(Box::new(Alone));
    };
    #[cfg(feature = "mpi")]
    let (exchange, remedy) = (
        mpi::Mpi::initialize()?,
        "but its MPI knows of none beside it: start it with the mpirun of the MPI that it was built with, or with srun \
         --mpi=pmix",
    );
    #[cfg(not(feature = "mpi"))]
    let (exchange, remedy) = (
        Alone,
        "but was built to be one: build it with --features mpi, or start it without mpirun or srun",
    );
    ensure!(
        launched == 1 || exchange.size() > 1,
        "msl was started as one of several processes ({variable}), {remedy}"
    );
    Ok(Box::new(exchange))
}

/// The environment variables in which launchers say how many processes they started: Open MPI, MPICH and those like it, `srun`.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// The environment variable in which a launcher of PMIx tells a process its number. It has none for how many there are.
const RANK: &str = "PMIX_RANK";

/// Returns how many processes a launcher started, at the least, and the variable that says so; none where no launcher did.
fn launched() -> Result<Option<(usize, String)>> {
    for name in SIZES.into_iter().chain([RANK]) {
        let Ok(value) = std::env::var(name) else {
            continue;
        };
        let number: usize =
            (value.parse()).with_context(|| format!("{name} is {value:?}, expected a number"))?;
        let least = if name == RANK {
            number.saturating_add(1)
        } else {
            number
        };
        return Ok(Some((least, format!("{name}={value}"))));
    }
    Ok(None)
}
