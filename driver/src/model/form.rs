//! In what form the layers of a model are computed.

use candle_core::{DType, Device};

/// The same layers, in one of two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In operations of our own that keep little and read everything once: the processor's, in f32 and f64.
    Fused,
    /// Out of candle's operations, which every device has in every type.
    Composed,
}

impl Form {
    /// The form for a device and a type.
    pub fn of(device: &Device, dtype: DType) -> Self {
        match (device, dtype) {
            (Device::Cpu, DType::F32 | DType::F64) => Self::Fused,
            _ => Self::Composed,
        }
    }
}
