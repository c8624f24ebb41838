//! Plain slices under candle's CPU tensors, for the operations that candle gives no backward.

use std::{marker::PhantomData, ops::Deref};

use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor, WithDType, bail};
use num_traits::Float;

/// What a model computes in.
pub trait Element: WithDType + Float {
    /// `e` to this power.
    fn exponential(self) -> Self;
}

impl Element for f32 {
    /// Without a branch or a call, so that a loop over it becomes vector instructions; within 2 units in the last place.
    fn exponential(self) -> f32 {
        // Beyond these the result is neither zero nor infinite yet, but close enough for a sum of exponentials.
        let x = self.clamp(-87.0, 88.0);
        // Adding and taking away 1.5 · 2²³ rounds to a whole number.
        const ROUNDING: f32 = 12_582_912.0;
        let whole = x * std::f32::consts::LOG2_E + ROUNDING;
        let power = whole.to_bits() << 23;
        let whole = whole - ROUNDING;
        // ln 2 in two parts, of which the first has few enough digits to be multiplied exactly.
        let rest = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
        let series = [
            1.0 / 5_040.0,
            1.0 / 720.0,
            1.0 / 120.0,
            1.0 / 24.0,
            1.0 / 6.0,
            0.5,
            1.0,
            1.0,
        ]
        .into_iter()
        .fold(0.0, |sum, coefficient| sum * rest + coefficient);
        f32::from_bits(series.to_bits().wrapping_add(power))
    }
}

impl Element for f64 {
    fn exponential(self) -> f64 {
        self.exp()
    }
}

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

/// The sum of products, in several sums side by side: one alone waits for every addition.
pub fn dot<T: Element>(a: &[T], b: &[T]) -> T {
    const LANES: usize = 16;
    let mut sums = [T::zero(); LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest =
        (a.remainder().iter().zip(b.remainder())).fold(T::zero(), |sum, (&a, &b)| sum + a * b);
    for (a, b) in a.zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.into_iter().fold(rest, |sum, lane| sum + lane)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_that_of_f64_to_the_last_digits() {
        for step in 0..=174_900 {
            let x = -87.0 + step as f32 * 1e-3;
            let (found, expected) = (f64::from(x.exponential()), f64::from(x).exp());
            assert!(
                (found / expected - 1.0).abs() < 2.4e-7,
                "e^{x}: {found}, expected {expected}"
            );
        }
        assert_eq!(0f32.exponential(), 1.0);
        assert!((-1e30f32).exponential() < 2e-38 && f32::NAN.exponential().is_nan());
    }

    #[test]
    fn dot_products_of_any_length_are_sums_of_products() {
        for length in [0, 1, 15, 16, 17, 40] {
            let a: Vec<f64> = (0..length).map(|i| (i % 7) as f64 - 2.0).collect();
            let b: Vec<f64> = (0..length).map(|i| (i % 5) as f64 + 1.0).collect();
            let sum: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert_eq!(dot(&a, &b), sum);
        }
    }
}
