//! The element types of tensors, and the type that each is computed in.

use std::ops::{Add, AddAssign, Mul, Sub};

use bytemuck::Zeroable;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::vectorized;

/// An element type of logits, hidden states and heads.
pub trait Element: Copy + Default + Zeroable + Send + Sync + 'static {
    /// The type that it is computed in: f64 for f64, and f32 for the others.
    type Real: Real;

    fn widen(self) -> Self::Real;
    fn narrow(value: Self::Real) -> Self;

    /// Returns the same slice if `Self` is the type that it is computed in, and `None` otherwise.
    fn as_real(_values: &[Self]) -> Option<&[Self::Real]> {
        None
    }

    /// Appends the values, widened.
    fn widen_into(values: &[Self], widened: &mut Vec<Self::Real>) {
        match Self::as_real(values) {
            Some(values) => widened.extend_from_slice(values),
            None => widen(values, widened),
        }
    }

    /// Returns the values in the type that they are computed in: the same slice, or a copy in `scratch`.
    fn widened<'a>(values: &'a [Self], scratch: &'a mut Vec<Self::Real>) -> &'a [Self::Real] {
        match Self::as_real(values) {
            Some(values) => values,
            None => {
                scratch.clear();
                Self::widen_into(values, scratch);
                scratch
            }
        }
    }
}

/// Appends `source` to `target`, widened.
pub(super) fn widen<T: Element>(source: &[T], target: &mut Vec<T::Real>) {
    vectorized(
        #[inline(always)]
        || target.extend(source.iter().map(|value| value.widen())),
    );
}

/// A type that a row is computed in: f32 or f64.
pub trait Real:
    Copy
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + AddAssign
    + Element<Real = Self>
    + Into<f64>
{
    const ZERO: Self;
    const NEG_INFINITY: Self;
    const INFINITY: Self;

    fn from_f64(value: f64) -> Self;

    /// Returns eˣ for x ≤ 0 to within 2 ulp; results below the smallest normal number may be 0; NaN for NaN.
    fn exponential(self) -> Self;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    const INFINITY: Self = f32::INFINITY;

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    /// Cephes' expf: x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial for eʳ, and n added to the exponent bits. std's `exp`
    /// does not vectorise.
    #[inline(always)]
    fn exponential(self) -> Self {
        const LOWEST: f32 = -87.3;
        // Adding 1.5·2²³ leaves the nearest integer in the low bits of the mantissa.
        const ROUND: f32 = 12_582_912.0;
        // ln 2 is split into two parts, so that n times the first is exact.
        const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
        let x = self;
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = x - n * LN_2[0] - n * LN_2[1];
        let mut polynomial = 1.987_569_1e-4;
        for coefficient in [
            1.398_2e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ] {
            polynomial = polynomial * r + coefficient;
        }
        let mantissa = polynomial * r * r + r + 1.0;
        let exponent = shifted.to_bits().wrapping_shl(23);
        let scaled = f32::from_bits(mantissa.to_bits().wrapping_add(exponent));
        // For NaN the comparison is false, and the integer addition above could turn it into a number, so NaN needs a test
        // of its own.
        if x < LOWEST {
            0.0
        } else if x.is_nan() {
            x
        } else {
            scaled
        }
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    const INFINITY: Self = f64::INFINITY;

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn exponential(self) -> Self {
        self.exp()
    }
}

impl Element for f32 {
    type Real = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
    fn as_real(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
}

impl Element for f64 {
    type Real = f64;

    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }
    #[inline(always)]
    fn narrow(value: f64) -> Self {
        value
    }
    fn as_real(values: &[Self]) -> Option<&[f64]> {
        Some(values)
    }
}

impl Element for f16 {
    type Real = f32;

    /// Converts the whole slice at once, because single conversions would test the features of the CPU each time.
    fn widen_into(values: &[Self], widened: &mut Vec<f32>) {
        let start = widened.len();
        widened.resize(start + values.len(), 0.0);
        values.convert_to_f32_slice(&mut widened[start..]);
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Element for bf16 {
    type Real = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}
