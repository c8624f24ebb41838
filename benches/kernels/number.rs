//! The types that kernels are compiled for.

use bytemuck::Pod;
use candle_core::WithDType;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use candle_trie::launch::Element;
use half::{bf16, f16};

pub trait Number: WithDType + CudaDType + DeviceRepr + ValidAsZeroBits + Pod {
    const ELEMENT: Element;
    const NAME: &str;
}

macro_rules! number {
    ($T:ty, $element:ident, $name:expr) => {
        impl Number for $T {
            const ELEMENT: Element = Element::$element;
            const NAME: &str = $name;
        }
    };
}
number!(f32, F32, "f32");
number!(f16, F16, "f16");
number!(bf16, Bf16, "bf16");
