//! The layers out of candle's operations. They sum up in f32 where the model is in f16 or bf16, and round once.
//!
//! candle would give gradients to frozen weights and to masks as well, and keep everything that lies between: so each
//! layer has a way back of its own, which begins at the layer's arguments.

pub mod attention;
pub mod gate;
pub mod linear;
pub mod norm;
pub mod rotary;

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor,
    backend::BackendStorage, bail,
};

/// What `forward` makes of one to three tensors, differentiable by `backward`: from the arguments, the gradient of the
/// result and which arguments want one, to the gradients of the arguments, of which only the wanted ones count.
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
    let op = Composed {
        result: Mutex::new(Some(result)),
        backward: Box::new(move |gradient| {
            let gradients = backward(detached.each_ref(), gradient, wanted)?.into_iter();
            let wanted = gradients.zip(wanted);
            Ok(wanted
                .map(|(gradient, wanted)| gradient.filter(|_| wanted))
                .collect())
        }),
    };
    // The operation looks at none of them: the last may stand there several times.
    let argument = |place: usize| arguments[place.min(N - 1)];
    argument(0).apply_op3(argument(1), argument(2), op)
}

struct Composed {
    /// Until it is handed on.
    result: Mutex<Option<Tensor>>,
    backward: Box<Backward>,
}

type Backward = dyn Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync;

impl Composed {
    /// The result, alone in its storage and from its beginning.
    fn take(&self) -> Result<Tensor> {
        let result = (self.result.lock().unwrap_or_else(PoisonError::into_inner)).take();
        match result {
            Some(result)
                if result.layout().contiguous_offsets().map(|(start, _)| start) == Some(0) =>
            {
                Ok(result)
            }
            Some(result) => result.force_contiguous(),
            None => bail!("a composed operation goes forward a second time"),
        }
    }
}

impl CustomOp3 for Composed {
    fn name(&self) -> &'static str {
        "composed"
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
        let result = self.take()?;
        match &*result.storage_and_layout().0 {
            Storage::Cpu(storage) => {
                Ok((storage.try_clone(result.layout())?, result.shape().clone()))
            }
            _ => bail!("the result of arguments on the processor is elsewhere"),
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
        let result = self.take()?;
        match &*result.storage_and_layout().0 {
            Storage::Cuda(storage) => {
                Ok((storage.try_clone(result.layout())?, result.shape().clone()))
            }
            _ => bail!("the result of arguments on a GPU is elsewhere"),
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

/// What sums are taken in: f32, or f64 where that is the model's type.
pub fn wide_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// A tensor in the type that sums are taken in.
fn wide(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(wide_dtype(tensor.dtype()))
}

/// `1 / (1 + e^-x)`.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}
