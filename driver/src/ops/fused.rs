//! Fused loops over CPU tensors in f32 and f64, for the operations in which passes over memory would cost a training step
//! dearly.

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor, WithDType, bail};

/// A type of numbers for which operations have a fused version.
pub trait Float: WithDType + num_traits::Float {
    /// Computes `e` to the power of `self`.
    fn exponential(self) -> Self;
}

impl Float for f32 {
    /// Computes `e` to the power of `self` without a branch or a call, so that a loop over it becomes vector instructions.
    /// It is within 2 units in the last place from −87 to 88; powers beyond are taken for these.
    fn exponential(self) -> f32 {
        let x = self.clamp(-87.0, 88.0);
        // Adding and subtracting 1.5 · 2²³ rounds to a whole number.
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

impl Float for f64 {
    fn exponential(self) -> f64 {
        self.exp()
    }
}

/// Evaluates `$fused` with `$float` as the type of a CPU tensor in f32 or f64, and `$composed` for every other tensor.
macro_rules! fused_or_composed {
    ($tensor:expr, $float:ident => $fused:expr, $composed:expr) => {
        match ($tensor.dtype(), $tensor.device().is_cpu()) {
            (candle_core::DType::F32, true) => {
                type $float = f32;
                $fused
            }
            (candle_core::DType::F64, true) => {
                type $float = f64;
                $fused
            }
            _ => $composed,
        }
    };
}
pub(super) use fused_or_composed;

/// Computes a tensor of the first tensor's shape from the elements of CPU tensors.
pub fn map_slices<T: Float, const N: usize>(
    tensors: [&Tensor; N],
    map: impl FnOnce([&[T]; N]) -> Vec<T>,
) -> Result<Tensor> {
    Tensor::from_vec(with_slices(tensors, map)?, tensors[0].shape(), &Device::Cpu)
}

/// Calls a function with the elements of CPU tensors.
pub fn with_slices<T: Float, R, const N: usize>(
    tensors: [&Tensor; N],
    function: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let tensors = tensors.map(Tensor::contiguous);
    let mut locked = Vec::with_capacity(N);
    for tensor in &tensors {
        match tensor {
            Ok(tensor) => locked.push(tensor.storage_and_layout()),
            Err(error) => bail!("cannot read a tensor: {error}"),
        }
    }
    let mut slices: [&[T]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&locked) {
        *slice = match &**storage {
            Storage::Cpu(storage) => elements(storage, layout)?,
            _ => bail!("expected a tensor on the CPU"),
        };
    }
    Ok(function(slices))
}

fn elements<'a, T: Float>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// Converts a constant.
pub fn constant<T: Float>(value: f64) -> T {
    <T as WithDType>::from_f64(value)
}

/// Computes a dot product in several sums side by side, since a single one would wait for every addition.
pub fn dot<T: Float>(a: &[T], b: &[T]) -> T {
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
