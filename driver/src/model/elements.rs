//! Plain slices under candle's CPU tensors, for the operations that candle gives no backward.

use std::{marker::PhantomData, ops::Deref};

use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor, WithDType, bail};
use num_traits::Float;

/// What a model computes in.
pub trait Element: WithDType + Float {}
impl Element for f32 {}
impl Element for f64 {}

/// The elements of a contiguous tensor's storage.
pub fn elements<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// The elements of a contiguous tensor, locked for reading as long as this lives.
pub struct Elements<'a, T> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
    element: PhantomData<T>,
}

impl<'a, T: Element> Elements<'a, T> {
    /// Fails for a tensor that is of another type, not contiguous, or not on the processor.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => elements::<T>(storage, layout)?,
            _ => bail!(
                "expected a tensor on the processor, got {:?}",
                tensor.device()
            ),
        };
        Ok(Self {
            storage,
            layout,
            element: PhantomData,
        })
    }
}

impl<T: Element> Deref for Elements<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(storage) => elements(storage, self.layout).unwrap_or_default(),
            _ => &[],
        }
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

/// Calls `$body` with `$element` as the type that the storage or the tensor holds.
macro_rules! for_element_of {
    ($holder:expr, $element:ident => $body:expr) => {{
        #[allow(unused_imports)]
        use candle_core::backend::BackendStorage as _;
        match $holder.dtype() {
            candle_core::DType::F32 => {
                type $element = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $element = f64;
                $body
            }
            other => candle_core::bail!("expected f32 or f64, got {other:?}"),
        }
    }};
}
pub(crate) use for_element_of;
