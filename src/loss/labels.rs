//! Labels from candle tensors.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Labels, Result};

impl TryFrom<&Tensor> for Labels {
    type Error = Error;

    /// Copies labels of shape `[T]` or `[B, T]`, in i64, i32 or u32, from any device.
    fn try_from(tensor: &Tensor) -> Result<Self> {
        let (Some(&length), 1 | 2) = (tensor.dims().last(), tensor.rank()) else {
            return Err(unsupported(
                "shape [T] or [B, T]",
                format!("{:?}", tensor.dims()),
            ));
        };
        match tensor.dtype() {
            DType::I64 | DType::I32 | DType::U32 => {
                // candle's devices do not convert every type of integer.
                let labels = tensor
                    .to_device(&Device::Cpu)?
                    .to_dtype(DType::I64)?
                    .flatten_all()?
                    .to_vec1::<i64>()?;
                Labels::new(&labels, length)
            }
            other => Err(unsupported("dtype i64, i32 or u32", format!("{other:?}"))),
        }
    }
}

fn unsupported(expected: &str, actual: String) -> Error {
    Error::Unsupported {
        what: "labels",
        expected: expected.to_owned(),
        actual,
    }
}
