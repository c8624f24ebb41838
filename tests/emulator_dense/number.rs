//! The element types that kernels are compiled for, as the tests see them.

use bytemuck::Pod;
use candle_trie::launch::Element;
use half::{bf16, f16};

/// A type of tensors.
pub trait Number: Pod {
    const ELEMENT: Element;
    /// The step between two numbers near 1.
    const STEP: f64;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

macro_rules! number {
    ($T:ty, $element:ident, $step:expr, $narrow:expr) => {
        impl Number for $T {
            const ELEMENT: Element = Element::$element;
            const STEP: f64 = $step;
            fn from_f64(value: f64) -> Self {
                $narrow(value)
            }
            fn to_f64(self) -> f64 {
                self.into()
            }
        }
    };
}
number!(f32, F32, 1.2e-7, |value| value as f32);
number!(f16, F16, 9.8e-4, f16::from_f64);
number!(bf16, Bf16, 7.9e-3, bf16::from_f64);
