//! Labels from candle tensors.

use candle_core::{DType, Tensor};

use crate::{Error, Labels, Result};

impl TryFrom<&Tensor> for Labels {
    type Error = Error;

    /// Labels of shape `[T]` or `[B, T]`, in i64 (−100 or `u32::MAX` to ignore) or u32
    /// (`u32::MAX` to ignore), from any device.
    fn try_from(tensor: &Tensor) -> Result<Self> {
        let (Some(&length), 1 | 2) = (tensor.dims().last(), tensor.rank()) else {
            return Err(unsupported(
                "shape [T] or [B, T]",
                format!("{:?}", tensor.dims()),
            ));
        };
        match tensor.dtype() {
            DType::I64 | DType::U32 => {
                let labels = tensor
                    .to_dtype(DType::I64)?
                    .flatten_all()?
                    .to_vec1::<i64>()?;
                Labels::new(&labels, length)
            }
            other => Err(unsupported("dtype i64 or u32", format!("{other:?}"))),
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
