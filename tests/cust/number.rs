//! The types that the losses take.

use candle_trie::cust::Logit;
use cust::memory::DeviceSlice;
use half::{bf16, f16};

pub use candle_trie::cust::{Bf16, F16};

pub trait Number: Logit + Default {
    const TOLERANCE: f64;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Number for f32 {
    const TOLERANCE: f64 = 1e-5;
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Number for F16 {
    const TOLERANCE: f64 = 1e-3;
    fn from_f64(value: f64) -> Self {
        Self(f16::from_f64(value))
    }
    fn to_f64(self) -> f64 {
        self.0.into()
    }
}

impl Number for Bf16 {
    const TOLERANCE: f64 = 8e-3;
    fn from_f64(value: f64) -> Self {
        Self(bf16::from_f64(value))
    }
    fn to_f64(self) -> f64 {
        self.0.into()
    }
}

pub fn f64s<T: Number>(slice: &DeviceSlice<T>) -> Vec<f64> {
    let values = slice.as_host_vec().unwrap();
    values.into_iter().map(T::to_f64).collect()
}
