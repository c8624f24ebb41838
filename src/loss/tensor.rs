//! Conversions from candle's storage and layouts to the slices that the backend takes.

use std::any::Any;

use candle_core::{CpuStorage, DType, Device, Layout, Storage, Tensor, WithDType};

use crate::backend::cpu::element::Element;
use crate::{Error, Result};

/// An element type that both candle and the CPU backend support.
pub trait Scalar: Element + WithDType {}

impl<T: Element + WithDType> Scalar for T {}

/// Returns the values of a storage of type `T` for writing, and `None` for another type.
pub(super) fn values_mut<T: Scalar>(storage: &mut CpuStorage) -> Option<&mut [T]> {
    let values: &mut dyn Any = match storage {
        CpuStorage::F32(values) => values,
        CpuStorage::F64(values) => values,
        CpuStorage::F16(values) => values,
        CpuStorage::BF16(values) => values,
        _ => return None,
    };
    values.downcast_mut::<Vec<T>>().map(Vec::as_mut_slice)
}

/// Runs `$body` with `$T` bound to the element type of `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $what:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F16 => {
                type $T = half::f16;
                $body
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => Err($crate::loss::tensor::unsupported_dtype($what, other)),
        }
    };
}
pub(super) use with_element;

/// A matrix in memory with rows of `width` contiguous elements and row stride `stride`, in elements.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub values: &'a [T],
    pub stride: usize,
    pub width: usize,
}

/// Returns a tensor `[.., width]` with its leading dimensions flattened to one, as a matrix.
pub(super) fn matrix<'a, T>(
    what: &'static str,
    values: &'a [T],
    layout: &Layout,
) -> Result<Matrix<'a, T>> {
    let (stride, width) = matrix_shape(what, layout)?;
    Ok(Matrix {
        values: values.get(layout.start_offset()..).unwrap_or(&[]),
        stride,
        width,
    })
}

/// Returns the row stride and the width of that matrix, in elements.
pub(super) fn matrix_shape(what: &'static str, layout: &Layout) -> Result<(usize, usize)> {
    let unsupported = || Error::Unsupported {
        what,
        expected: "a layout whose last dimension is contiguous and whose leading ones flatten \
                   (call .contiguous())"
            .into(),
        actual: format!(
            "shape {:?} with strides {:?}",
            layout.dims(),
            layout.stride()
        ),
    };
    let (&width, leading) = layout.dims().split_last().ok_or_else(unsupported)?;
    let (&last, strides) = layout.stride().split_last().ok_or_else(unsupported)?;
    if width > 1 && last != 1 {
        return Err(unsupported());
    }
    // Without rows, their stride does not matter.
    let leading = if leading.contains(&0) { &[] } else { leading };
    // From the innermost leading dimension outwards, the stride of each must be the size of all dimensions inside it.
    let mut stride = None;
    let mut expected = 0;
    for (&size, &step) in leading
        .iter()
        .zip(strides)
        .rev()
        .filter(|(size, _)| **size != 1)
    {
        match stride {
            None => stride = Some(step),
            Some(_) if step == expected => {}
            Some(_) => return Err(unsupported()),
        }
        expected = step * size;
    }
    Ok((stride.unwrap_or(width), width))
}

/// Refuses a tensor whose leading dimensions are not the positions that the rows were made for.
pub(super) fn check_positions(tensor: &Tensor, positions: usize) -> Result<()> {
    let found = match tensor.dims().split_last() {
        Some((_, leading)) => leading.iter().product(),
        None => 0,
    };
    if found == positions {
        return Ok(());
    }
    Err(Error::PositionMismatch {
        rows: positions,
        positions: found,
        shape: tensor.dims().to_vec(),
    })
}

/// Refuses a device that this build has no backend for, and f64 on a device, which has no kernels for it.
pub(super) fn check_loss_device(what: &'static str, tensor: &Tensor) -> Result<()> {
    let expected = match (tensor.device(), tensor.dtype()) {
        (Device::Cpu, _) => return Ok(()),
        (Device::Cuda(_), DType::F32 | DType::F16 | DType::BF16) if cfg!(feature = "cuda") => {
            return Ok(());
        }
        (Device::Cuda(_), _) if cfg!(feature = "cuda") => "dtype f32, f16 or bf16 on CUDA",
        _ if cfg!(feature = "cuda") => "a tensor on the CPU or on CUDA",
        _ => "a tensor on the CPU",
    };
    Err(Error::Unsupported {
        what,
        expected: expected.into(),
        actual: format!("{:?} on {:?}", tensor.dtype(), tensor.device().location()),
    })
}

/// Returns the storage of a tensor on the CPU.
pub(super) fn cpu<'a>(what: &'static str, storage: &'a Storage) -> Result<&'a CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => Err(Error::Unsupported {
            what,
            expected: "a tensor on the CPU".into(),
            actual: "a tensor elsewhere".into(),
        }),
    }
}

pub(super) fn unsupported_dtype(what: &'static str, dtype: DType) -> Error {
    Error::Unsupported {
        what,
        expected: "dtype f32, f16, bf16 or f64".into(),
        actual: format!("{dtype:?}"),
    }
}
