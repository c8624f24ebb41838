//! From candle's storage and layouts to the slices that the backend takes.

use std::collections::HashMap;

use candle_core::{CpuStorage, DType, Device, Layout, Storage, Tensor, WithDType};

use crate::backend::cpu::element::Element;
use crate::backend::cpu::linear::HeadRows;
use crate::{Error, Result};

/// Gathered head rows by token set, in the type they are computed in.
#[derive(Debug)]
pub(super) enum Gathered {
    F32(HashMap<u32, HeadRows<f32>>),
    F64(HashMap<u32, HeadRows<f64>>),
    /// A device reads them where they lie.
    OnDevice,
}

/// A type that both candle and the CPU backend know.
pub(super) trait Scalar: Element + WithDType {
    /// The values of a storage of this type, to be written.
    fn storage_as_mut_slice(storage: &mut CpuStorage) -> Option<&mut [Self]>;

    /// Head rows gathered for this type, kept among those of all types and found again.
    fn wrap(gathered: HashMap<u32, HeadRows<Self::Real>>) -> Gathered;
    fn unwrap(gathered: &Gathered) -> Option<&HashMap<u32, HeadRows<Self::Real>>>;
}

macro_rules! scalar {
    ($T:ty, $variant:ident, $computed:ident) => {
        impl Scalar for $T {
            fn storage_as_mut_slice(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(values) => Some(values),
                    _ => None,
                }
            }

            fn wrap(gathered: HashMap<u32, HeadRows<Self::Real>>) -> Gathered {
                Gathered::$computed(gathered)
            }

            fn unwrap(gathered: &Gathered) -> Option<&HashMap<u32, HeadRows<Self::Real>>> {
                match gathered {
                    Gathered::$computed(gathered) => Some(gathered),
                    _ => None,
                }
            }
        }
    };
}
scalar!(f32, F32, F32);
scalar!(f64, F64, F64);
scalar!(half::f16, F16, F32);
scalar!(half::bf16, BF16, F32);

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

/// A matrix in memory: rows of `width` elements, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub values: &'a [T],
    pub stride: usize,
    pub width: usize,
}

/// The matrix that a tensor `[.., width]` is once its leading dimensions are flattened.
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

/// How many elements a row of that matrix is from the next, and how many it has.
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
    // Where there is no row at all, it does not matter how far apart they would be.
    let leading = if leading.contains(&0) { &[] } else { leading };
    // From the innermost leading dimension outwards, each must step over all of those inside it.
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

/// Refuses a device that no backend of this build serves a loss on, and f64 where there are no kernels for it.
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

/// The storage of a tensor on the CPU.
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
