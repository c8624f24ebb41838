//! The sum of a residual stream and what a block adds to it. candle's own gives both a gradient, wanted or not.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::elements::{elements, for_element_of};

/// `stream + change`, of the same shape.
pub fn residual(stream: &Tensor, change: &Tensor) -> Result<Tensor> {
    stream
        .contiguous()?
        .apply_op2(&change.contiguous()?, Residual)
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
        let shape = stream_layout.shape();
        if shape != change_layout.shape() {
            bail!("{:?} cannot be added to {shape:?}", change_layout.shape());
        }
        for_element_of!(stream, T => {
            let stream = elements::<T>(stream, stream_layout)?;
            let change = elements::<T>(change, change_layout)?;
            let sum = stream.iter().zip(change).map(|(stream, change)| stream + change).collect();
            Ok((T::to_cpu_storage_owned(sum), shape.clone()))
        })
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
