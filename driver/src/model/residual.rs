//! The sum of a residual stream and what a block adds to it. candle's own gives both a gradient, wanted or not.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor, backend::BackendStorage,
    bail, op::Add,
};

/// `stream + change`, of the same shape.
pub fn residual(stream: &Tensor, change: &Tensor) -> Result<Tensor> {
    if stream.shape() != change.shape() {
        bail!(
            "{:?} cannot be added to {:?}",
            change.shape(),
            stream.shape()
        );
    }
    stream.apply_op2(change, Residual)
}

struct Residual;

impl CustomOp2 for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn cpu_fwd(
        &self,
        stream: &CpuStorage,
        stream_layout: &Layout,
        change: &CpuStorage,
        change_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sum = stream.binary_impl::<Add>(change, stream_layout, change_layout)?;
        Ok((sum, stream_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        stream: &CudaStorage,
        stream_layout: &Layout,
        change: &CudaStorage,
        change_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let sum = stream.binary_impl::<Add>(change, stream_layout, change_layout)?;
        Ok((sum, stream_layout.shape().clone()))
    }

    fn bwd(
        &self,
        stream: &Tensor,
        change: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let wanted = |tensor: &Tensor| tensor.track_op().then(|| gradient.clone());
        Ok((wanted(stream), wanted(change)))
    }
}
