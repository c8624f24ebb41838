//! Operations of several tensor functions with a backward of their own.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, DType, InplaceOp1, Layout, Result, Shape, Storage, Tensor,
    bail,
};

/// Computes `forward` of one to three tensors as one node of the autograd graph, whose gradients `backward` computes.
///
/// `forward` takes the arguments detached from the graph. It must return a new tensor, because that tensor's memory
/// becomes the result's. `backward` takes the detached arguments, the gradient of the result (contiguous), and for
/// each argument whether its gradient is wanted. It returns a gradient for each argument; those that are not wanted may
/// be `None`.
pub fn differentiable<const N: usize>(
    arguments: [&Tensor; N],
    forward: impl FnOnce([&Tensor; N]) -> Result<Tensor>,
    backward: impl Fn([&Tensor; N], &Tensor, [bool; N]) -> Result<[Option<Tensor>; N]>
    + Send
    + Sync
    + 'static,
) -> Result<Tensor> {
    const { assert!(0 < N && N <= 3) }
    let wanted = arguments.map(Tensor::track_op);
    let detached = arguments.map(Tensor::detach);
    let result = forward(detached.each_ref())?;
    if !wanted.contains(&true) {
        return Ok(result);
    }
    let node = Node {
        result: Mutex::new(Some(result)),
        backward: Box::new(move |gradient| {
            let gradients = backward(detached.each_ref(), gradient, wanted)?;
            let wanted_only = gradients.into_iter().zip(wanted);
            Ok(wanted_only
                .map(|(gradient, wanted)| gradient.filter(|_| wanted))
                .collect())
        }),
    };
    // candle's custom operations take a fixed number of arguments. The node reads none of them, so the last one may
    // stand in for those that are missing; it gets no second gradient.
    let argument = |index: usize| arguments[index.min(N - 1)];
    argument(0).apply_op3(argument(1), argument(2), node)
}

/// Adds two tensors of the same shape. Unlike candle's addition, it makes no gradient for a tensor that needs none.
pub fn add(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    differentiable(
        [left, right],
        |[left, right]| left + right,
        |_, gradient, _| Ok([Some(gradient.clone()), Some(gradient.clone())]),
    )
}

/// Returns the type in which sums are accumulated: f64 for f64, and f32 for every other type.
pub fn accumulator_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// Converts a tensor to the type in which its sums are accumulated.
pub(super) fn widen(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(accumulator_dtype(tensor.dtype()))
}

/// An operation whose result is computed before candle is told of it.
struct Node {
    /// The result, until candle asks for it.
    result: Mutex<Option<Tensor>>,
    backward: Box<Backward>,
}

/// Computes the gradients of the arguments from the gradient of the result.
type Backward = dyn Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync;

impl Node {
    /// Returns the result, contiguous and from the beginning of its storage.
    fn take_result(&self) -> Result<Tensor> {
        let result = (self.result.lock().unwrap_or_else(PoisonError::into_inner)).take();
        let Some(result) = result else {
            bail!("the forward pass of an operation runs a second time");
        };
        match result.layout().contiguous_offsets() {
            Some((0, _)) => Ok(result),
            _ => result.force_contiguous(),
        }
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        "differentiable"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let result = self.take_result()?;
        let moved = MoveOut(Mutex::new(None));
        result.inplace_op1(&moved)?;
        match moved.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(storage) => Ok((storage, result.shape().clone())),
            None => bail!("the result is not on the CPU, but its arguments are"),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let result = self.take_result()?;
        match &*result.storage_and_layout().0 {
            Storage::Cuda(storage) => {
                Ok((storage.try_clone(result.layout())?, result.shape().clone()))
            }
            _ => bail!("the result is not on the GPU, but its arguments are"),
        }
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = (self.backward)(&gradient.contiguous()?)?.into_iter();
        let mut next = || gradients.next().flatten();
        Ok((next(), next(), next()))
    }
}

/// Moves a tensor's memory out of it, which spares a copy of every result.
struct MoveOut(Mutex<Option<CpuStorage>>);

impl InplaceOp1 for MoveOut {
    fn name(&self) -> &'static str {
        "move-out"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        let moved = std::mem::replace(storage, CpuStorage::U8(Vec::new()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(moved);
        Ok(())
    }
}
