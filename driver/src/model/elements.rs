//! Plain slices under candle's CPU tensors, for the operations that candle gives no backward.

use candle_core::{CpuStorage, Layout, Result, WithDType, bail};
use num_traits::Float;

/// What a model computes in.
pub trait Element: WithDType + Float {}
impl Element for f32 {}
impl Element for f64 {}

/// The elements of a contiguous tensor.
pub fn elements<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// A real constant in the model's type.
pub fn constant<T: Element>(value: f64) -> T {
    <T as WithDType>::from_f64(value)
}

/// The largest element, −∞ where there is none.
pub fn largest<T: Element>(values: &[T]) -> T {
    let larger = |largest, &value| if value > largest { value } else { largest };
    values.iter().fold(T::neg_infinity(), larger)
}

/// Calls `$body` with `$element` as the type that the storage holds.
macro_rules! for_element_of {
    ($storage:expr, $element:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32(_) => {
                type $element = f32;
                $body
            }
            candle_core::CpuStorage::F64(_) => {
                type $element = f64;
                $body
            }
            other => candle_core::bail!(
                "expected f32 or f64, got {:?}",
                candle_core::backend::BackendStorage::dtype(other)
            ),
        }
    };
}
pub(crate) use for_element_of;
