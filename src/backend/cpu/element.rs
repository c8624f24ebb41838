//! The types logits come in, and the type each is computed in.

use bytemuck::Zeroable;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::vector::{self, Real};

/// A type of logits, hidden states or head.
pub(crate) trait Element: Copy + Default + Zeroable + Send + Sync + 'static {
    /// What it is computed in: f64 for f64, f32 for the rest.
    type Real: Real;

    fn widen(self) -> Self::Real;
    fn narrow(value: Self::Real) -> Self;

    /// The values as they are, where they need no widening.
    fn as_real(_values: &[Self]) -> Option<&[Self::Real]> {
        None
    }

    /// Appends the values, widened.
    fn widen_into(values: &[Self], widened: &mut Vec<Self::Real>) {
        match Self::as_real(values) {
            Some(values) => widened.extend_from_slice(values),
            None => vector::widen(values, widened),
        }
    }

    /// The values as they are, or widened into `scratch`.
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

    /// A conversion at a time would ask for each what the machine can do.
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
