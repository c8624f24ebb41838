//! Sums of tensors that live on GPUs, one GPU for each rank. They travel between the GPUs and never through the hosts.

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Storage, Tensor,
    cuda_backend::cudarc::nccl::{
        result::NcclError,
        safe::{Comm, Id, ReduceOp},
    },
    op::BackpropOp,
};

use super::Exchange;

/// Joins the other ranks' GPUs. MPI carries the name by which they find each other.
///
/// # Errors
/// What NCCL says: two ranks on one GPU, or no library of NCCL on this machine.
pub fn join(exchange: &dyn Exchange, device: &CudaDevice) -> Result<Comm> {
    let own = match exchange.rank() {
        0 => {
            let id = Id::new().map_err(|error| said(error, "find the other ranks' GPUs"))?;
            id.internal().map(|byte| byte as u8).to_vec()
        }
        _ => Vec::new(),
    };
    let gathered = exchange.gather(&own)?;
    let id: [u8; 128] = (gathered[0].as_slice().try_into()).context("rank 0 gave no id of NCCL")?;
    let id = Id::uninit(id.map(|byte| byte as _));
    let (rank, size) = (exchange.rank(), exchange.size());
    Comm::from_rank(device.cuda_stream(), rank, size, id).map_err(|error| {
        said(
            error,
            "join the other ranks' GPUs: does each rank have its own?",
        )
    })
}

/// Returns the sum over the ranks of a tensor in f32 on this rank's GPU. NCCL chooses the order of the terms by the number and
/// the connections of the GPUs, so that the bits are those of every rank, and of another run on the same machines.
pub fn sum(communicator: &Comm, values: &Tensor) -> Result<Tensor> {
    ensure!(
        values.dtype() == DType::F32,
        "gradients on GPUs are summed in f32, and these are in {:?}",
        values.dtype()
    );
    let (storage, layout) = values.storage_and_layout();
    let (Storage::Cuda(storage), Device::Cuda(device)) = (&*storage, values.device()) else {
        return Err(anyhow!("the values are not on a GPU"));
    };
    let (first, end) = (layout.contiguous_offsets()).context("the values are not contiguous")?;
    let terms = storage.as_cuda_slice::<f32>()?.slice(first..end);
    let mut sums = device.alloc_zeros::<f32>(end - first)?;
    communicator
        .all_reduce(&terms, &mut sums, &ReduceOp::Sum)
        .map_err(|error| said(error, "sum gradients over the GPUs"))?;
    let sums = CudaStorage::wrap_cuda_slice(sums, device.clone());
    let shape = values.shape();
    Ok(Tensor::from_storage(
        Storage::Cuda(sums),
        shape,
        BackpropOp::none(),
        false,
    ))
}

fn said(error: NcclError, to: &str) -> anyhow::Error {
    anyhow!("NCCL cannot {to} ({:?})", error.0)
}
