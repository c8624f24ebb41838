//! The types logits come in, and the type each is computed in.

use bytemuck::Zeroable;
use half::{bf16, f16};

use super::vector::Real;

/// A type of logits, hidden states or head.
pub(crate) trait Element: Copy + Default + Zeroable + Send + Sync + 'static {
    /// What it is computed in: f64 for f64, f32 for the rest.
    type Real: Real;

    fn widen(self) -> Self::Real;
    fn narrow(value: Self::Real) -> Self;
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
}

impl Element for f16 {
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
